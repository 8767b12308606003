-- The bot that a request with this key made: written with the bot itself, so that no crash comes in between.
ALTER TABLE idempotency_keys ADD COLUMN bot_id TEXT;
