-- The target of docker-compose.yml: the documented role of a sink.
\set ON_ERROR_STOP on
\getenv etl_password ETL_PASSWORD

CREATE ROLE "etl" LOGIN PASSWORD :'etl_password';
GRANT CONNECT, CREATE, TEMPORARY ON DATABASE "warehouse" TO "etl";
