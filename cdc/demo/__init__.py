"""The demo's own parts: a private Postgres that needs no installation and leaves nothing behind."""
