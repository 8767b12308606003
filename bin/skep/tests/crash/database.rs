//! What the database holds, read in one go and not by the store's own code, so that a row of a bot that is long gone
//! is seen too.

use std::path::Path;

use sqlx::SqlitePool;
use sqlx::sqlite::SqliteConnectOptions;

/// Every row that says something of a bot, as lines that can be compared.
const LINES: &str = "
    SELECT 'row of bot ' || id || ': ' || status FROM bots
    UNION ALL SELECT 'fault of bot ' || bot_id || ': ' || check_type FROM bot_faults
    UNION ALL SELECT 'row of a backup of ' || bot_id || ': ' || iif(verified, 'verified', 'damaged') FROM backups
    UNION ALL SELECT 'row of workspace ' || bot_id || ': ' || status || ', wanted ' || desired
        || ', limits ' || coalesce(limits_wanted ->> 'pids', 0)
        || ', reason ' || iif(reason IS NULL, 'false', 'true')
        || ', ' || replace(image, rtrim(image, replace(image, '/', '')), '') FROM containers
    UNION ALL SELECT 'unfinished operation ' || kind || ' of ' || bot_id FROM operations
        WHERE state IN ('queued', 'running')
    UNION ALL SELECT DISTINCT 'history of ' || bot_id || ', which is gone' FROM lifecycle_events
        WHERE bot_id NOT IN (SELECT id FROM bots)
    UNION ALL SELECT DISTINCT 'versions of ' || s.bot_id FROM container_versions v
        JOIN snapshots s ON s.seq = v.snapshot_seq";

const VERSIONS: &str = "SELECT s.bot_id, v.version, s.runtime_snapshot_name FROM container_versions v
    JOIN snapshots s ON s.seq = v.snapshot_seq";

pub(crate) struct Database(SqlitePool);

impl Database {
    /// Of a server that has run on that file.
    pub(crate) async fn open(file: &Path) -> Self {
        let options = SqliteConnectOptions::new().filename(file).read_only(true);
        Self(
            SqlitePool::connect_with(options)
                .await
                .expect("the database can be opened"),
        )
    }

    /// Takes the record of a bot's workspace away, as it is in a database of before that was made.
    pub(crate) async fn forget_workspace(file: &Path, bot: &str) {
        let options = SqliteConnectOptions::new().filename(file).foreign_keys(true);
        let pool = SqlitePool::connect_with(options)
            .await
            .expect("the database can be opened");
        let forgotten = sqlx::query("DELETE FROM containers WHERE bot_id = ?")
            .bind(bot)
            .execute(&pool);
        assert_eq!(forgotten.await.expect("it can be written").rows_affected(), 1);
        pool.close().await;
    }

    pub(crate) async fn lines(&self) -> Vec<String> {
        sqlx::query_scalar(LINES)
            .fetch_all(&self.0)
            .await
            .expect("the database can be read")
    }

    /// Of all versions: the bot, the number, the layer.
    pub(crate) async fn versions(&self) -> Vec<(String, i64, String)> {
        sqlx::query_as(VERSIONS)
            .fetch_all(&self.0)
            .await
            .expect("the database can be read")
    }
}
