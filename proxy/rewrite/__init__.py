"""Versions, shapes, dual writes: a pure function from a statement and a version to a plan or a refusal."""
