-- The ledger's file. Money, tokens and requests are integers in the unit of their account; instants
-- are Unix milliseconds; epochs are 32 hexadecimal digits. Long texts that repeat (accounts, who
-- called what) are kept once and named by number: a usage row is then some 150 bytes.

CREATE TABLE setting (
    name  TEXT PRIMARY KEY,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

-- Names only: an account may be known from usage rows and have no balance.
CREATE TABLE account (
    id      INTEGER PRIMARY KEY,
    key     TEXT NOT NULL UNIQUE,
    -- The end of its window.
    ends INTEGER NOT NULL
) STRICT;
CREATE INDEX account_ends ON account (ends);

CREATE TABLE balance (
    account       INTEGER PRIMARY KEY REFERENCES account (id),
    settled       INTEGER NOT NULL,
    unaccounted   INTEGER NOT NULL,
    counted_since INTEGER NOT NULL,
    would_refuse  INTEGER NOT NULL
) STRICT;

CREATE TABLE epoch (
    id      INTEGER PRIMARY KEY,
    epoch   TEXT NOT NULL UNIQUE,
    gateway TEXT NOT NULL,
    through INTEGER NOT NULL,
    -- 0 live, 1 lost, 2 closed.
    state   INTEGER NOT NULL CHECK (state BETWEEN 0 AND 2),
    heard   INTEGER NOT NULL
) STRICT;
CREATE INDEX epoch_open ON epoch (gateway) WHERE state < 2;

CREATE TABLE holding (
    account  INTEGER NOT NULL REFERENCES account (id),
    epoch    INTEGER NOT NULL REFERENCES epoch (id),
    granted  INTEGER NOT NULL,
    returned INTEGER NOT NULL,
    settled  INTEGER NOT NULL,
    PRIMARY KEY (account, epoch)
) STRICT, WITHOUT ROWID;
CREATE INDEX holding_epoch ON holding (epoch);

-- Who called what.
CREATE TABLE dimension (
    id              INTEGER PRIMARY KEY,
    namespace       TEXT NOT NULL,
    feature         TEXT NOT NULL,
    customer        TEXT NOT NULL,
    user_hash       TEXT NOT NULL,
    service_account TEXT NOT NULL,
    route           TEXT NOT NULL,
    tier            TEXT NOT NULL,
    backend         TEXT NOT NULL,
    model           TEXT NOT NULL,
    -- The last quarter hour that has a bucket of it.
    last            INTEGER NOT NULL,
    UNIQUE (namespace, feature, customer, user_hash, service_account, route, tier, backend, model)
) STRICT;

CREATE TABLE usage_row (
    epoch             INTEGER NOT NULL,
    sequence          INTEGER NOT NULL,
    settled_sequence  INTEGER NOT NULL,
    request_id        TEXT NOT NULL,
    attempt           INTEGER NOT NULL,
    paused_at         INTEGER NOT NULL,
    admitted_at       INTEGER NOT NULL,
    settled_at        INTEGER NOT NULL,
    accounts          TEXT NOT NULL,    -- numbers of accounts, as JSON
    observed          TEXT NOT NULL,    -- names of observing budgets, as JSON
    observed_accounts TEXT NOT NULL,    -- the accounts that it was counted in for them, as `accounts`
    dimension         INTEGER NOT NULL,
    session           TEXT NOT NULL,
    input             INTEGER NOT NULL,
    cached_input      INTEGER NOT NULL,
    cache_write       INTEGER NOT NULL,
    output            INTEGER NOT NULL,
    reasoning         INTEGER NOT NULL,
    usd               INTEGER NOT NULL, -- nano-dollars, here and below
    tokens            INTEGER NOT NULL,
    requests          INTEGER NOT NULL,
    reserved_usd      INTEGER NOT NULL,
    reserved_tokens   INTEGER NOT NULL,
    reserved_requests INTEGER NOT NULL,
    best_tier_usd     INTEGER NOT NULL,
    price_version     INTEGER NOT NULL, -- the bits of an unsigned number
    -- 0 completed, 1 usage missing, 2 provider error, 3 abandoned, 4 replayed.
    outcome           INTEGER NOT NULL CHECK (outcome BETWEEN 0 AND 4),
    PRIMARY KEY (epoch, sequence)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_admitted ON usage_row (admitted_at);

-- Quarter hours, by the instant of admission: moved only by rows that are new.
CREATE TABLE bucket (
    quarter       INTEGER NOT NULL,     -- its first instant
    dimension     INTEGER NOT NULL,
    calls         INTEGER NOT NULL,
    failed        INTEGER NOT NULL,     -- of `calls`: the provider said no
    input         INTEGER NOT NULL,
    cached_input  INTEGER NOT NULL,
    cache_write   INTEGER NOT NULL,
    output        INTEGER NOT NULL,
    reasoning     INTEGER NOT NULL,
    usd           INTEGER NOT NULL,
    tokens        INTEGER NOT NULL,
    requests      INTEGER NOT NULL,
    best_tier_usd INTEGER NOT NULL,
    PRIMARY KEY (quarter, dimension)
) STRICT, WITHOUT ROWID;

CREATE TABLE decision (
    id                INTEGER PRIMARY KEY,
    epoch             TEXT NOT NULL,
    request_id        TEXT NOT NULL,
    account           TEXT,
    accounts          TEXT NOT NULL,    -- keys of accounts, as JSON: they may have no other record
    stage             TEXT NOT NULL,
    reason            TEXT NOT NULL,
    reserved_usd      INTEGER NOT NULL,
    reserved_tokens   INTEGER NOT NULL,
    reserved_requests INTEGER NOT NULL,
    paused_at         INTEGER NOT NULL,
    answered_at       INTEGER NOT NULL
) STRICT;
CREATE INDEX decision_answered ON decision (answered_at);
