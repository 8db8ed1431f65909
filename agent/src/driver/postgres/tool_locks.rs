//! The advisory locks with which migration tools keep each other out, so that no tool migrates while we do, and none
//! of us beside another of us. Taken for the length of the transaction: a pooler cannot strand them. Only statements that
//! run in no transaction take them for their session.

use sqlx::postgres::PgConnection;

/// The keys for one database, ours last.
fn keys(database: &str, schema: &str, table: &str) -> [i64; 4] {
    let crc = |text: &str| i64::from(crc32(text.as_bytes()));
    // golang-migrate: database.GenerateAdvisoryLockId, computed in 32 bits.
    let golang = crc32(format!("{schema}\0{table}\0{database}").as_bytes()).wrapping_mul(1_486_364_155);
    [
        // sqlx: migrate::generate_lock_id.
        0x3d32_ad9e_i64.wrapping_mul(crc(database)),
        i64::from(golang),
        // Rails: MIGRATOR_SALT.
        2_053_462_845_i64.wrapping_mul(crc(database)),
        own_key(database),
    ]
}

/// Held by our own transactions, and waited for by whoever wants to know how one of them ended.
pub(super) fn own_key(database: &str) -> i64 {
    // "rbctl" above a checksum of the name.
    0x7262_6374_6c00_0000_i64 ^ i64::from(crc32(database.as_bytes()))
}

/// Takes all of them. Waits as long as the session's `lock_timeout` for each.
pub(super) async fn take(c: &mut PgConnection, database: &str, schema: &str, table: &str) -> Result<(), sqlx::Error> {
    for key in keys(database, schema, table) {
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(key)
            .execute(&mut *c)
            .await?;
    }
    Ok(())
}

/// Takes all of them for the session, without waiting; false when one is not to be had, and then none is held.
pub(super) async fn try_for_session(
    c: &mut PgConnection,
    database: &str,
    schema: &str,
    table: &str,
) -> Result<bool, sqlx::Error> {
    for key in keys(database, schema, table) {
        let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(key)
            .fetch_one(&mut *c)
            .await?;
        if !taken {
            sqlx::query("SELECT pg_advisory_unlock_all()").execute(c).await?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes our own lock for the session, if nobody has it.
pub(super) async fn try_own(c: &mut PgConnection, key: i64) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
        .bind(key)
        .fetch_one(c)
        .await
}

/// Ends the session that holds our own lock. It is one of ours whose client is gone: one step of a component runs at a
/// time. Other programs do not have this key; what is not ours by its name is left alone all the same.
pub(super) async fn end_holder(c: &mut PgConnection, key: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
         WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid()
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND (l.classid::bigint << 32) | l.objid::bigint = $1
           AND a.application_name = current_setting('application_name')",
    )
    .bind(key)
    .execute(c)
    .await
    .map(|_| ())
}

/// CRC-32 (IEEE), as all of these tools use it.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_standard_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b""), 0);
    }
}
