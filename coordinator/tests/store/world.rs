//! A store of its own for every case, and the ways in which a case looks at it from outside.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rollback_coordinator::store::Store;
use rollback_coordinator::store::memory::{MemoryDisk, MemoryStore};
use rollback_coordinator::store::postgres::PostgresStore;
use rollback_coordinator::store::sqlite::SqliteStore;

use crate::server::Database;

pub struct World {
    kind: Kind,
}

enum Kind {
    /// One process has the file, so every replica of it is the same store.
    Sqlite {
        dir: tempfile::TempDir,
        open: Mutex<Weak<SqliteStore>>,
    },
    Postgres(Box<Database>),
    Memory(Arc<MemoryDisk>),
}

impl World {
    pub fn sqlite() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let open = Mutex::default();
        Self {
            kind: Kind::Sqlite { dir, open },
        }
    }

    pub fn memory() -> Self {
        Self {
            kind: Kind::Memory(MemoryDisk::new()),
        }
    }

    pub fn postgres(database: Database) -> Self {
        Self {
            kind: Kind::Postgres(Box::new(database)),
        }
    }

    /// A handle as another replica has it.
    pub async fn replica(&self) -> Arc<dyn Store> {
        match &self.kind {
            Kind::Sqlite { open, .. } => {
                let there = open.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
                if let Some(store) = there {
                    return store;
                }
                let opened = SqliteStore::open(&self.file(), "test").await.expect("open");
                let store = Arc::new(opened);
                *open.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&store);
                store
            }
            Kind::Postgres(database) => Arc::new(PostgresStore::open(&database.url, None).await.expect("open")),
            Kind::Memory(disk) => Arc::new(MemoryStore::open(disk)),
        }
    }

    /// SQLite's database.
    pub fn file(&self) -> PathBuf {
        match &self.kind {
            Kind::Sqlite { dir, .. } => dir.path().join("coordinator.db"),
            Kind::Postgres(_) | Kind::Memory(_) => panic!("not a file"),
        }
    }

    pub fn database(&self) -> &Database {
        match &self.kind {
            Kind::Postgres(database) => database,
            Kind::Sqlite { .. } | Kind::Memory(_) => panic!("not PostgreSQL"),
        }
    }

    /// Changes something by hand. `false`: there are no hands for this store.
    pub async fn by_hand(&self, sql: &'static str) -> bool {
        match &self.kind {
            Kind::Sqlite { .. } => {
                let url = format!("sqlite://{}", self.file().display());
                let pool = sqlx::SqlitePool::connect(&url).await.expect("open by hand");
                sqlx::query(sql).execute(&pool).await.expect("change by hand");
                pool.close().await;
                true
            }
            Kind::Postgres(database) => {
                let mut hand = database.connect().await;
                sqlx::query(sql).execute(&mut hand).await.expect("change by hand");
                true
            }
            Kind::Memory(_) => false,
        }
    }
}
