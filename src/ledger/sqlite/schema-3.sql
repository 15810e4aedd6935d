-- What budgets were in force, as gateways were told them: an operator that starts anew while a manifest is bad,
-- or can't be read, goes on from here.
CREATE TABLE policy (
    key  TEXT PRIMARY KEY,
    body TEXT NOT NULL
) STRICT, WITHOUT ROWID;
