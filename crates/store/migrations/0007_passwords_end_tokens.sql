-- Counts the passwords of a user: a token made for another one does not count, but for the one that is named.
ALTER TABLE users ADD COLUMN token_generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN token_kept TEXT;
