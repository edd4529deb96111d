-- What scripts change, made anew before each run.
SET client_min_messages = warning;
DROP SCHEMA IF EXISTS other CASCADE;
DROP TABLE IF EXISTS child, later, t, big, made;
DROP SEQUENCE IF EXISTS seq;
CREATE TABLE t (id int PRIMARY KEY, name text);
INSERT INTO t VALUES (1, 'one'), (2, 'two'), (3, 'three'), (4, 'four'), (5, NULL);
CREATE TABLE child (id int NOT NULL CONSTRAINT positive_id CHECK (id > 0), parent int REFERENCES t);
CREATE TABLE later (parent int REFERENCES t DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE big (id int, filler text);
INSERT INTO big SELECT n, repeat('f', n % 50) FROM generate_series(1, 1000) AS n;
CREATE SEQUENCE seq;
