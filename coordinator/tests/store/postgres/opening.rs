//! Opening: what is said when it does not go, and what is made sure of when it does.

use rollback_coordinator::store::OpenError;
use rollback_coordinator::store::postgres::PostgresStore;

use crate::cases::cases;
use crate::material::{lead, until};
use crate::server::{PASSWORD, USER};
use crate::world::World;

cases![
    what_is_in_the_way_is_said_without_the_password,
    a_certificate_is_checked_as_the_url_says,
    a_standby_is_not_taken_for_the_primary,
];

async fn what_is_in_the_way_is_said_without_the_password(world: &World) {
    let database = world.database();
    let (name, port) = (&database.name, database.port);
    let wrong = "geheim-und-falsch";
    let at = |port: u16, name: &str| format!("postgres://{USER}@localhost:{port}/{name}");
    let cases = [
        (at(port, name), Some(wrong), "password authentication failed"),
        (
            format!("postgres://{USER}:{wrong}@localhost:{port}/{name}"),
            None,
            "password authentication failed",
        ),
        (
            at(port, "nowhere"),
            Some(PASSWORD),
            "there is no database nowhere at localhost",
        ),
        (at(1, name), Some(PASSWORD), "localhost:1 cannot be reached"),
        (
            format!("mysql://{USER}:{wrong}@localhost/{name}"),
            None,
            "not one of PostgreSQL",
        ),
        (
            format!("postgres://{USER}:{wrong}@localhost:{port}/{name}?sslmode=maybe"),
            None,
            "not one of PostgreSQL",
        ),
        (at(port, name).replace(USER, "nobody"), Some(wrong), "pg_hba.conf"),
    ];
    for (url, password, expected) in cases {
        let refused = PostgresStore::open(&url, password).await.expect_err("it is in the way");
        let shown = format!("{refused:?}");
        let said = format!("{:#} {shown}", anyhow::Error::from(refused));
        assert!(said.contains(expected), "{url}: {said}");
        for secret in [wrong, PASSWORD] {
            assert!(!said.contains(secret), "{url}: {said}");
        }
    }
    let open = PostgresStore::open(&at(port, name), Some(PASSWORD))
        .await
        .expect("open");
    let shown = format!("{open:?}");
    assert!(shown.contains(name) && !shown.contains(PASSWORD), "{shown}");
}

async fn a_standby_is_not_taken_for_the_primary(world: &World) {
    let standby = world.database().standby();
    let mut said = None;
    until("the standby answers", async || {
        said = PostgresStore::open(&standby.url, None).await.err();
        !matches!(said, Some(OpenError::Unreachable { .. }))
    })
    .await;
    assert!(matches!(said, Some(OpenError::Standby { .. })), "{said:?}");
}

async fn a_certificate_is_checked_as_the_url_says(world: &World) {
    let database = world.database();
    let url = |host: &str, ca: &std::path::Path| {
        format!(
            "postgres://{USER}@{host}:{}/{}?sslmode=verify-full&sslrootcert={}",
            database.port,
            database.name,
            ca.display()
        )
    };
    let store = PostgresStore::open(&url("localhost", &database.ca), Some(PASSWORD))
        .await
        .expect("open");
    lead(&store, "a").await;
    let mut hand = database.connect().await;
    let (encrypted,): (i64,) = sqlx::query_as(
        "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND datname = current_database()",
    )
    .fetch_one(&mut hand)
    .await
    .expect("look");
    assert!(encrypted > 0);
    let other = database.ca.with_file_name("server.crt");
    for wrong in [url("127.0.0.1", &database.ca), url("localhost", &other)] {
        let refused = PostgresStore::open(&wrong, Some(PASSWORD)).await;
        assert!(
            matches!(refused, Err(OpenError::Unreachable { .. })),
            "{wrong}: {refused:?}"
        );
    }
}
