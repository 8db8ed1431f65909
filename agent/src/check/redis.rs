//! A check that a Redis server answers PING, and keeps what is written to it: a key of ours is set with a lifetime, read
//! back and deleted. With `read_only` (a replica, a user who may not write), PING is all.
//!
//! ```toml
//! redis = { address = "127.0.0.1:6379", password_file = "/etc/rollback-agent/redis-password", db = 0 }
//! redis = { address = "/run/redis/redis.sock", user = "checker", read_only = true }
//! ```

use std::path::PathBuf;
use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo, RedisConnectionInfo};
use serde::Deserialize;

/// How long a key of ours lives when the check is cut off before it deletes it.
const KEY_LIFETIME_SECONDS: u64 = 30;

/// Of the client's own limits; the check's `timeout` cuts off earlier, where it is shorter.
const CLIENT_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RedisCheck {
    /// `host:port`, or the absolute path of the server's socket.
    address: String,
    user: Option<String>,
    /// A file (0600) that holds nothing but the password.
    password_file: Option<PathBuf>,
    #[serde(default)]
    db: u16,
    /// Never write.
    #[serde(default)]
    read_only: bool,
}

impl RedisCheck {
    /// What only the values show.
    pub fn validate(&self) -> Result<(), String> {
        self.address_parts().map(drop)
    }

    fn address_parts(&self) -> Result<ConnectionAddr, String> {
        if self.address.starts_with('/') {
            return Ok(ConnectionAddr::Unix(self.address.clone().into()));
        }
        super::checked_address(self.address.clone())?;
        let (host, port) = self.address.rsplit_once(':').unwrap_or((&self.address, "6379"));
        let port = port
            .parse()
            .map_err(|_| format!("{:?} is not host:port", self.address))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        Ok(ConnectionAddr::Tcp(host.to_owned(), port))
    }

    pub fn target(&self) -> String {
        format!("redis {} db {}", self.address, self.db)
    }

    /// `Ok` and `Err` both say what was seen. The password is in neither.
    pub async fn ask(&self) -> Result<String, String> {
        let failed = |what: &str, e: &redis::RedisError| format!("{}: {what}: {e}", self.target());
        let mut settings = RedisConnectionInfo::default()
            .set_db(i64::from(self.db))
            .set_skip_set_lib_name();
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(path) = &self.password_file {
            let password = tokio::fs::read_to_string(path)
                .await
                .map_err(|e| format!("{}: read {}: {e}", self.target(), path.display()))?;
            settings = settings.set_password(password.trim_end_matches(['\r', '\n']));
        }
        let info = self
            .address_parts()?
            .into_connection_info()
            .map_err(|e| failed("connect", &e))?
            .set_redis_settings(settings);
        let client = Client::open(info).map_err(|e| failed("connect", &e))?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CLIENT_LIMIT))
            .set_response_timeout(Some(CLIENT_LIMIT));
        let mut server = client
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(|e| failed("connect", &e))?;
        let pong: String = redis::cmd("PING")
            .query_async(&mut server)
            .await
            .map_err(|e| failed("PING", &e))?;
        if pong != "PONG" {
            return Err(format!("{}: PING was not answered by PONG", self.target()));
        }
        if self.read_only {
            return Ok("PONG".into());
        }
        self.round_trip(&mut server)
            .await
            .map(|()| "PONG, written and read back".into())
    }

    async fn round_trip(&self, server: &mut redis::aio::MultiplexedConnection) -> Result<(), String> {
        let failed = |what: &str, e: &redis::RedisError| format!("{}: {what}: {e}", self.target());
        let (key, value) = (
            format!("rollbackctl:check:{}", uuid::Uuid::new_v4()),
            uuid::Uuid::new_v4().to_string(),
        );
        let set: Option<String> = redis::cmd("SET")
            .arg(&key)
            .arg(&value)
            .arg("EX")
            .arg(KEY_LIFETIME_SECONDS)
            .arg("NX")
            .query_async(server)
            .await
            .map_err(|e| failed("SET of a key of ours (read_only = true leaves it out)", &e))?;
        if set.as_deref() != Some("OK") {
            return Err(format!("{}: SET of a key of ours was not accepted", self.target()));
        }
        let read: Result<Option<String>, _> = redis::cmd("GET").arg(&key).query_async(server).await;
        // Whatever was read: the key is ours to take away.
        let deleted: Result<u64, _> = redis::cmd("DEL").arg(&key).query_async(server).await;
        let read = read.map_err(|e| failed("GET of a key of ours", &e))?;
        if read.as_deref() != Some(value.as_str()) {
            return Err(format!("{}: what was written did not come back", self.target()));
        }
        match deleted.map_err(|e| failed("DEL of a key of ours", &e))? {
            1 => Ok(()),
            _ => Err(format!(
                "{}: a key of ours was gone before it was deleted",
                self.target()
            )),
        }
    }
}
