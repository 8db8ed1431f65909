//! The advisory locks with which migration tools keep each other out, so that no tool migrates while we do, and none
//! of us beside another of us. Taken for the length of the transaction: a pooler cannot strand them.

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
