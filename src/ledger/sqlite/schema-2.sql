-- Whether commits are known to be lost and this epoch's gateway has not said Hello since. While an open
-- epoch is so, nothing is granted: a restart of the ledger must not forget that.
ALTER TABLE epoch ADD COLUMN undeclared INTEGER NOT NULL DEFAULT 0 CHECK (undeclared BETWEEN 0 AND 1);

-- By how much calls cost more than was reserved for them.
ALTER TABLE balance ADD COLUMN overrun INTEGER NOT NULL DEFAULT 0;
