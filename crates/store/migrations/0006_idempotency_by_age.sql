-- Every claim of a key forgets those of over a day under the one writer's lock: without this it looks at all of them.
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
