-- Run once, by a new database server: Dagster's database is there already; this is the state store's.
CREATE DATABASE nami_amp;
