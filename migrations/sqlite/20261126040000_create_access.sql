-- Who may do what. A right is decided by names alone, before anything else is looked up.

-- People. Who has no row here and no key is anonymous.
CREATE TABLE account (
    -- A component of a repository's name: the namespace of that name is the account's own.
    name TEXT PRIMARY KEY,
    -- argon2id, as a PHC string.
    password_hash TEXT NOT NULL,
    -- May do everything, and manage accounts.
    is_admin INTEGER NOT NULL,
    is_disabled INTEGER NOT NULL,
    -- Random, another one after each change of what a token rests on: tokens name it.
    generation INTEGER NOT NULL,
    created_at INTEGER NOT NULL
);

-- Random secrets in place of passwords: for programs, and what `turbo login` and `docker login` keep.
CREATE TABLE robot_key (
    name TEXT PRIMARY KEY,
    -- How the secret begins, to tell keys apart: shown in lists.
    prefix TEXT NOT NULL,
    -- BLAKE3 of the secret, which is random and long: a slow hash would add nothing.
    secret_hash BLOB NOT NULL CHECK (length(secret_hash) = 32),
    -- Whose rights bound it; NULL if it is of no one.
    owner TEXT REFERENCES account (name) ON DELETE CASCADE,
    -- The namespace that bounds it if it is of no one; NULL for none.
    namespace TEXT,
    -- 1: made by a login, and as good as the owner's password.
    is_login INTEGER NOT NULL,
    -- What it may do at most: JSON, a list of {target, rights}.
    scopes TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    -- NULL: never.
    expires_at INTEGER,
    -- To the minute; NULL: never.
    last_used_at INTEGER
);

-- Serves "which keys are the account's", and the cascade above.
CREATE INDEX robot_key_by_owner ON robot_key (owner);

CREATE TABLE access_grant (
    -- `user:NAME`, `robot:NAME`, `authenticated` or `anonymous`.
    subject TEXT NOT NULL,
    -- `*`, `tools/*`, `tools/app` or `@metrics`.
    target TEXT NOT NULL,
    -- 0: allows; 1: denies, which wins.
    is_deny INTEGER NOT NULL,
    -- Bits: 1 pull, 2 push, 4 delete, 8 admin.
    rights INTEGER NOT NULL,
    granted_by TEXT NOT NULL,
    granted_at INTEGER NOT NULL,
    PRIMARY KEY (subject, target, is_deny)
);

-- Keys that sign tokens (HMAC-SHA256). The newest signs; older ones verify until their tokens are over.
CREATE TABLE signing_key (
    id TEXT PRIMARY KEY,
    secret BLOB NOT NULL CHECK (length(secret) = 32),
    created_at INTEGER NOT NULL
);

-- Counts changes to the tables above, in the transaction of each: servers read them again when it grows.
CREATE TABLE access_version (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    version INTEGER NOT NULL
);
INSERT INTO access_version (id, version) VALUES (1, 0);

-- What was changed and what was refused. Rows are added, and removed when they are old; never changed.
CREATE TABLE audit_entry (
    -- Grows with time: 12 hex digits of milliseconds, then 16 that make it unique.
    id TEXT PRIMARY KEY,
    at INTEGER NOT NULL,
    -- `user:NAME`, `robot:NAME`, `anonymous`, `open` or `console`.
    who TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    -- `done` or `refused`.
    outcome TEXT NOT NULL,
    detail TEXT,
    -- NULL for what was done on the server's console.
    address TEXT,
    request TEXT
);
