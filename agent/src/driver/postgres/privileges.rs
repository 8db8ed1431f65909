//! Who may do what with tables, views and sequences. A migration that drops and makes a relation anew loses the grants
//! that an operator gave on it, and the application finds itself locked out after a migration that "succeeded".
//!
//! Left out: grants on functions, types, schemas and single columns.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use super::connect::{ident, qualified, run};

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Grant {
    /// `None` is PUBLIC.
    grantee: Option<String>,
    privilege: String,
    grantable: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Rights {
    owner: String,
    grants: Vec<Grant>,
}

/// By quoted name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Privileges(BTreeMap<String, Rights>);

impl Privileges {
    pub async fn read(c: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let rows = sqlx::query(
            "SELECT n.nspname AS schema, c.relname AS name, o.rolname AS owner, a.grantee = 0 AS public,
                    g.rolname AS grantee, a.privilege_type AS privilege, a.is_grantable AS grantable
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles o ON o.oid = c.relowner
             LEFT JOIN LATERAL aclexplode(c.relacl) a ON a.grantee <> c.relowner
             LEFT JOIN pg_roles g ON g.oid = a.grantee
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname !~ '^pg_'
               AND n.nspname <> 'information_schema' AND n.nspname !~ '^rollbackctl_'
             ORDER BY 1, 2, 5, 6",
        )
        .fetch_all(c)
        .await?;
        let mut all: BTreeMap<String, Rights> = BTreeMap::new();
        for row in &rows {
            let name = qualified(&row.try_get::<String, _>("schema")?, &row.try_get::<String, _>("name")?);
            let rights = all.entry(name).or_default();
            rights.owner = row.try_get("owner")?;
            let public = row.try_get::<Option<bool>, _>("public")?;
            let grantee: Option<String> = row.try_get("grantee")?;
            // No row of the list at all, or a role that was dropped.
            if public.is_none() || (public == Some(false) && grantee.is_none()) {
                continue;
            }
            let (privilege, grantable) = (row.try_get("privilege")?, row.try_get("grantable")?);
            rights.grants.push(Grant {
                grantee,
                privilege,
                grantable,
            });
        }
        Ok(Self(all))
    }

    /// Those of relations that `before` does not have.
    pub fn unknown_to(&self, before: &Self) -> Self {
        let new = self.0.iter().filter(|(name, _)| !before.0.contains_key(*name));
        Self(new.map(|(name, rights)| (name.clone(), rights.clone())).collect())
    }

    /// Without those of these relations, by quoted name.
    pub fn without(mut self, names: &[String]) -> Self {
        self.0.retain(|name, _| !names.contains(name));
        self
    }

    /// Gives back what was there and is not now, to relations that exist. Takes nothing away.
    pub async fn give_back(&self, c: &mut PgConnection) -> Result<(), sqlx::Error> {
        let now = Self::read(c).await?;
        for (name, wanted) in &self.0 {
            let Some(found) = now.0.get(name) else { continue };
            for grant in wanted.grants.iter().filter(|g| !found.grants.contains(g)) {
                let grantee = grant.grantee.as_deref().map_or("PUBLIC".to_owned(), ident);
                let option = if grant.grantable { " WITH GRANT OPTION" } else { "" };
                let kind = if sequence_only(&grant.privilege, c, name).await? {
                    "SEQUENCE"
                } else {
                    "TABLE"
                };
                let privilege = &grant.privilege;
                run(c, format!("GRANT {privilege} ON {kind} {name} TO {grantee}{option}")).await?;
            }
            if wanted.owner != found.owner && may_become(c, &wanted.owner).await? {
                run(c, format!("ALTER TABLE {name} OWNER TO {}", ident(&wanted.owner))).await?;
            }
        }
        Ok(())
    }
}

/// `GRANT … ON TABLE` does not take USAGE, which only sequences have.
async fn sequence_only(privilege: &str, c: &mut PgConnection, name: &str) -> Result<bool, sqlx::Error> {
    if privilege == "USAGE" {
        return Ok(true);
    }
    sqlx::query_scalar("SELECT relkind = 'S' FROM pg_class WHERE oid = to_regclass($1)")
        .bind(name)
        .fetch_one(c)
        .await
}

async fn may_become(c: &mut PgConnection, role: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT pg_has_role(current_user, $1::name, 'MEMBER')")
        .bind(role)
        .fetch_one(c)
        .await
}
