"""Versions, shapes and dual writes: one pure function from a statement and a version to a plan or a refusal."""
