//! Who wrote what into the journal, noted by the database itself: triggers on the journal and on the lease, which the
//! harness makes and the coordinators know nothing of.
//!
//! What is noted of an append: which coordinator's session it was (a setting of the session), which lease was there then (its
//! epoch and its leader), and the kind of the event. Of a lease: epoch and leader. When either was *committed* is
//! PostgreSQL's own record (`track_commit_timestamp`), so that an append that began before a takeover and was committed
//! after it shows.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{ROLE, StoreServer};

/// The setting of a session that says whose it is.
pub const SETTING: &str = "harness.replica";

/// Runs inside every transaction that appends, so it does no more than a row each.
const SETUP: &str = "
CREATE SCHEMA harness AUTHORIZATION {role};
CREATE TABLE harness.appends (
    rollback_id text NOT NULL, seq bigint NOT NULL, kind text NOT NULL, phase text, session text NOT NULL,
    epoch bigint NOT NULL, leader text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE harness.leases (epoch bigint NOT NULL, leader text NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
ALTER TABLE harness.appends OWNER TO {role};
ALTER TABLE harness.leases OWNER TO {role};
CREATE FUNCTION harness.appended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO harness.appends (rollback_id, seq, kind, phase, session, epoch, leader)
    SELECT NEW.rollback_id, NEW.seq, NEW.payload::jsonb ->> 'kind', NEW.payload::jsonb ->> 'phase',
        coalesce(current_setting('{setting}', true), ''), epoch, leader
    FROM public.lease;
    RETURN NULL;
END $$;
CREATE FUNCTION harness.led() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO harness.leases (epoch, leader) VALUES (NEW.epoch, NEW.leader);
    RETURN NULL;
END $$;
INSERT INTO harness.leases (epoch, leader) SELECT epoch, leader FROM public.lease;
CREATE TRIGGER harness_appended AFTER INSERT ON public.events FOR EACH ROW EXECUTE FUNCTION harness.appended();
CREATE TRIGGER harness_led AFTER UPDATE ON public.lease FOR EACH ROW WHEN (OLD.epoch <> NEW.epoch)
    EXECUTE FUNCTION harness.led();
";

/// An event that was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    pub rollback_id: String,
    pub seq: u64,
    /// `step_intended` and so on.
    pub kind: String,
    /// Of the beginning and the end of one; else empty.
    pub phase: String,
    /// The coordinator's name; empty where its sessions do not carry it.
    pub by: String,
    pub epoch: u64,
    /// Since 1970, by the clock of the store's host: when it was written, a moment before it was committed.
    pub at: Duration,
}

/// The triggers, on one store.
#[derive(Clone, Copy, Debug)]
pub struct Recorder<'a>(&'a StoreServer);

impl StoreServer {
    /// Begins to note. The tables are the coordinators' own, so one of them must have made them already.
    pub fn record(&self) -> Result<Recorder<'_>> {
        self.psql(&SETUP.replace("{role}", ROLE).replace("{setting}", SETTING))
            .context("make the triggers that note who writes into the journal")?;
        Ok(Recorder(self))
    }

    /// What is noted since [`StoreServer::record`].
    pub fn recorder(&self) -> Recorder<'_> {
        Recorder(self)
    }
}

impl Recorder<'_> {
    /// Events of all rollbacks that were appended after a moment of the store's clock, in their order.
    pub fn acts_since(&self, since: Duration) -> Result<Vec<Act>> {
        let rows = self.0.psql(&format!(
            "SELECT rollback_id, seq, kind, phase, session, epoch, (extract(epoch FROM at) * 1e6)::bigint FROM harness.appends \
             WHERE at > to_timestamp({}) ORDER BY at, seq",
            since.as_secs_f64()
        ))?;
        let act = |row: &str| -> Option<Act> {
            let columns: Vec<&str> = row.split('|').collect();
            let [rollback_id, seq, kind, phase, by, epoch, at] = columns.try_into().ok()?;
            Some(Act {
                rollback_id: rollback_id.to_owned(),
                seq: seq.parse().ok()?,
                kind: kind.to_owned(),
                phase: phase.to_owned(),
                by: by.to_owned(),
                epoch: epoch.parse().ok()?,
                at: Duration::from_micros(at.parse().ok()?),
            })
        };
        rows.lines()
            .map(|row| act(row).with_context(|| format!("a row of the recorder: {row}")))
            .collect()
    }

    /// When the lease with this epoch, or the first one after it, was taken: (epoch, name of the leader, time).
    pub fn lease_from(&self, epoch: u64) -> Result<Option<(u64, String, Duration)>> {
        let row = self.0.psql(&format!(
            "SELECT epoch, leader, (extract(epoch FROM at) * 1e6)::bigint FROM harness.leases WHERE epoch >= {epoch} \
             ORDER BY epoch LIMIT 1"
        ))?;
        if row.is_empty() {
            return Ok(None);
        }
        let columns: Vec<&str> = row.split('|').collect();
        let read = || -> Option<(u64, String, Duration)> {
            let [epoch, leader, at] = columns.try_into().ok()?;
            let name = leader.split('/').next()?.to_owned();
            Some((epoch.parse().ok()?, name, Duration::from_micros(at.parse().ok()?)))
        };
        read()
            .map(Some)
            .with_context(|| format!("a lease of the recorder: {row}"))
    }

    /// Appends that no leader may have made: by a session of somebody who did not hold the lease when it was written, or
    /// committed after another lease was. Empty: the fence holds.
    pub fn stale_appends(&self) -> Result<Vec<String>> {
        let rows = self.0.psql(
            "SELECT a.session || ' appended ' || a.kind || ' (' || a.rollback_id || '/' || a.seq || ') with epoch ' || a.epoch \
                || ' of ' || a.leader \
             FROM harness.appends a \
             WHERE a.session NOT IN ('', split_part(a.leader, '/', 1)) \
                OR EXISTS (SELECT FROM harness.leases l \
                    WHERE l.epoch > a.epoch AND pg_xact_commit_timestamp(l.xmin) < pg_xact_commit_timestamp(a.xmin))",
        )?;
        Ok(rows.lines().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, PgConnection};

    use super::SETTING;
    use crate::control::make_dir;
    use crate::store_server::{DATABASE, StoreServer};

    /// As much of the coordinators' schema as the triggers see.
    const TABLES: &str = "CREATE TABLE lease (epoch bigint, leader text); INSERT INTO lease VALUES (1, 'coord-1/a');\
        CREATE TABLE events (rollback_id text, seq bigint, payload text)";

    fn append(seq: u32, by: &str) -> String {
        format!(
            "SET {SETTING} = '{by}'; INSERT INTO events VALUES ('r', {seq}, '{{\"kind\": \"phase_started\", \"phase\": \"app\"}}');"
        )
    }

    #[tokio::test]
    async fn appends_without_the_lead_show_also_when_they_began_with_it() {
        let dir = make_dir().expect("a directory");
        let store = StoreServer::start(dir.path(), &dir.path().join("log"), false, false)
            .await
            .expect("a server");
        store.psql(TABLES).expect("the tables");
        let recorder = store.record().expect("the triggers");
        store.psql(&append(1, "coord-1")).expect("an append of the leader");
        assert!(recorder.stale_appends().expect("a look").is_empty());

        let url = format!(
            "postgres://postgres:{}@127.0.0.1:{}/{DATABASE}",
            store.password(),
            store.port()
        );
        let mut slow = PgConnection::connect(&url).await.expect("a session");
        let unfinished = format!("BEGIN; {}", append(2, "coord-1"));
        sqlx::raw_sql(sqlx::AssertSqlSafe(unfinished))
            .execute(&mut slow)
            .await
            .expect("an append");
        store
            .psql("UPDATE lease SET epoch = 2, leader = 'coord-2/b'")
            .expect("a takeover");
        store.psql(&append(3, "coord-2")).expect("an append of the new leader");
        assert!(
            recorder.stale_appends().expect("a look").is_empty(),
            "it is not committed"
        );
        sqlx::raw_sql("COMMIT").execute(&mut slow).await.expect("a commit");
        store.psql(&append(4, "coord-1")).expect("an append of the old leader");

        let stale = recorder.stale_appends().expect("a look");
        let mut found: Vec<bool> = [2, 4]
            .map(|seq| stale.iter().any(|row| row.contains(&format!("(r/{seq})"))))
            .to_vec();
        found.push(stale.len() == 2);
        assert_eq!(found, [true; 3], "{stale:?}");
        assert_eq!(
            recorder
                .lease_from(2)
                .expect("a look")
                .map(|(epoch, name, _)| (epoch, name)),
            Some((2, "coord-2".to_owned()))
        );
    }
}
