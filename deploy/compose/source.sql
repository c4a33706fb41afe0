-- The source of docker-compose.yml: an application's role and tables, and the documented role of capture.
\set ON_ERROR_STOP on
\getenv app_password APP_PASSWORD
\getenv cdc_password CDC_PASSWORD

CREATE ROLE "app" LOGIN PASSWORD :'app_password';
ALTER DATABASE "shop" OWNER TO "app";

CREATE ROLE "cdc" LOGIN REPLICATION PASSWORD :'cdc_password';
GRANT CONNECT ON DATABASE "shop" TO "cdc";
GRANT USAGE ON SCHEMA "public" TO "cdc";
GRANT SELECT ON ALL TABLES IN SCHEMA "public" TO "cdc";
ALTER DEFAULT PRIVILEGES FOR ROLE "app" IN SCHEMA "public" GRANT SELECT ON TABLES TO "cdc";
GRANT CREATE ON DATABASE "shop" TO "cdc";
GRANT "app" TO "cdc";

SET ROLE "app";
CREATE TABLE product (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    price numeric(10, 2) NOT NULL
);
CREATE TABLE purchase (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    product_id bigint NOT NULL REFERENCES product,
    quantity integer NOT NULL CHECK (quantity > 0),
    made_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO product (name, price) SELECT 'product ' || n, n * 1.25 FROM generate_series(1, 100) AS n;
INSERT INTO purchase (product_id, quantity) SELECT 1 + n % 100, 1 + n % 5 FROM generate_series(1, 1000) AS n;
