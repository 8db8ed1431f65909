//! What belongs to a database by its OID and not by its name: owner, grants on it, settings, limits, tablespace, comment.
//!
//! A dump without `--create` has none of it, and exchanging names does not carry it either.

use rollback_proto::problem::{Code, Problem};
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgConnection;

use crate::driver::postgres::connect::{ident, literal, run};
use crate::driver::postgres::sql_error::sql_problem;

/// Settings whose stored text is a list of quoted names: written back as one text, it would become one name.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Grant {
    /// Everybody without.
    grantee: Option<String>,
    privilege: String,
    grantable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Setting {
    /// Every role without.
    role: Option<String>,
    name: String,
    value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Properties {
    owner: String,
    grants: Vec<Grant>,
    connection_limit: i32,
    tablespace: String,
    settings: Vec<Setting>,
    pub comment: Option<String>,
}

impl Properties {
    pub async fn read(c: &mut PgConnection, database: u32) -> Result<Self, sqlx::Error> {
        let oid = i64::from(database);
        let row = sqlx::query(
            "SELECT pg_get_userbyid(datdba)::text AS owner, datconnlimit, t.spcname::text AS tablespace,
                    shobj_description(d.oid, 'pg_database') AS comment
             FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.oid::bigint = $1",
        )
        .bind(oid)
        .fetch_one(&mut *c)
        .await?;
        let grants = sqlx::query(
            "SELECT CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END AS grantee, a.privilege_type::text AS privilege,
                    bool_or(a.is_grantable) AS grantable
             FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) a
             WHERE d.oid::bigint = $1 GROUP BY 1, 2 ORDER BY 1 NULLS FIRST, 2",
        )
        .bind(oid)
        .fetch_all(&mut *c)
        .await?;
        let settings = sqlx::query(
            "SELECT r.rolname::text AS role, u.setting FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole,
                    unnest(s.setconfig) WITH ORDINALITY u (setting, place)
             WHERE s.setdatabase::bigint = $1 AND (s.setrole = 0 OR r.oid IS NOT NULL) ORDER BY 1 NULLS FIRST, u.place",
        )
        .bind(oid)
        .fetch_all(&mut *c)
        .await?;
        let grant = |row: &sqlx::postgres::PgRow| {
            Ok(Grant {
                grantee: row.try_get("grantee")?,
                privilege: row.try_get("privilege")?,
                grantable: row.try_get("grantable")?,
            })
        };
        let setting = |row: &sqlx::postgres::PgRow| {
            let text: String = row.try_get("setting")?;
            let (name, value) = text.split_once('=').unwrap_or((&text, ""));
            Ok(Setting {
                role: row.try_get("role")?,
                name: name.to_owned(),
                value: value.to_owned(),
            })
        };
        Ok(Self {
            owner: row.try_get("owner")?,
            grants: grants.iter().map(grant).collect::<Result<_, sqlx::Error>>()?,
            connection_limit: row.try_get("datconnlimit")?,
            tablespace: row.try_get("tablespace")?,
            settings: settings.iter().map(setting).collect::<Result<_, sqlx::Error>>()?,
            comment: row.try_get("comment")?,
        })
    }

    /// Before anything is restored into `name`: who owns it, and where it lies.
    pub async fn found(&self, c: &mut PgConnection, name: &str) -> Result<(), Problem> {
        let current: String = sqlx::query_scalar(
            "SELECT t.spcname::text FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE datname = $1",
        )
        .bind(name)
        .fetch_one(&mut *c)
        .await
        .map_err(|e| sql_problem(Code::RestoreFailed, format!("look at {name}"), &e))?;
        if current != self.tablespace {
            let sql = format!(
                "ALTER DATABASE {} SET TABLESPACE {}",
                ident(name),
                ident(&self.tablespace)
            );
            carried(c, sql, &format!("move {name} to tablespace {}", self.tablespace)).await?;
        }
        self.give_owner(c, name).await
    }

    async fn give_owner(&self, c: &mut PgConnection, name: &str) -> Result<(), Problem> {
        let sql = format!("ALTER DATABASE {} OWNER TO {}", ident(name), ident(&self.owner));
        carried(c, sql, &format!("make {} the owner of {name}", self.owner)).await
    }

    /// Finds out whether [`Self::put_on`] will be allowed, before something long is begun. Leaves nothing behind.
    pub async fn try_on(&self, c: &mut PgConnection, name: &str) -> Result<(), Problem> {
        let failed = |e| sql_problem(Code::RestoreFailed, format!("look at {name}"), &e);
        run(c, "BEGIN".to_owned()).await.map_err(failed)?;
        let tried = self.put_on(c, name).await;
        run(c, "ROLLBACK".to_owned()).await.map_err(failed)?;
        tried
    }

    /// Everything else, on a database that is complete. What it had of it before goes.
    pub async fn put_on(&self, c: &mut PgConnection, name: &str) -> Result<(), Problem> {
        let database = ident(name);
        let oid: i64 = sqlx::query_scalar("SELECT oid::bigint FROM pg_database WHERE datname = $1")
            .bind(name)
            .fetch_one(&mut *c)
            .await
            .map_err(|e| sql_problem(Code::RestoreFailed, format!("look at {name}"), &e))?;
        let there = Self::read(c, u32::try_from(oid).unwrap_or_default())
            .await
            .map_err(|e| sql_problem(Code::RestoreFailed, format!("look at {name}"), &e))?;
        if there.owner != self.owner {
            self.give_owner(c, name).await?;
        }
        if there.grants != self.grants {
            for grantee in there.grants.iter().map(|g| &g.grantee) {
                let sql = format!("REVOKE ALL ON DATABASE {database} FROM {}", role(grantee.as_deref()));
                carried(c, sql, "carry grants over").await?;
            }
            for grant in &self.grants {
                let option = if grant.grantable { " WITH GRANT OPTION" } else { "" };
                // The privilege's name comes from the server's own list.
                let sql = format!(
                    "GRANT {} ON DATABASE {database} TO {}{option}",
                    grant.privilege,
                    role(grant.grantee.as_deref())
                );
                let what = format!(
                    "grant {} to {}",
                    grant.privilege,
                    grant.grantee.as_deref().unwrap_or("everybody")
                );
                carried(c, sql, &what).await?;
            }
        }
        if there.connection_limit != self.connection_limit {
            let sql = format!("ALTER DATABASE {database} CONNECTION LIMIT {}", self.connection_limit);
            carried(c, sql, "carry the connection limit over").await?;
        }
        if there.settings != self.settings {
            for whose in there.settings.iter().map(|s| &s.role) {
                let sql = format!("{} RESET ALL", of_database(&database, whose.as_deref()));
                carried(c, sql, "carry settings over").await?;
            }
            for setting in &self.settings {
                let sql = format!(
                    "{} SET {} TO {}",
                    of_database(&database, setting.role.as_deref()),
                    setting.name.split('.').map(ident).collect::<Vec<_>>().join("."),
                    value_of(setting)
                );
                let whose = setting
                    .role
                    .as_deref()
                    .map(|r| format!(" of role {r}"))
                    .unwrap_or_default();
                carried(c, sql, &format!("carry setting {}{whose} over", setting.name)).await?;
            }
        }
        Ok(())
    }

    /// COMMENT as it was.
    pub fn comment_statement(&self, name: &str) -> String {
        let comment = self.comment.as_deref().map_or("NULL".to_owned(), literal);
        format!("COMMENT ON DATABASE {} IS {comment}", ident(name))
    }
}

async fn carried(c: &mut PgConnection, sql: String, what: &str) -> Result<(), Problem> {
    run(c, sql).await.map_err(|e| {
        sql_problem(Code::RestoreFailed, what, &e).remedy(
            "let the agent's user do this (a setting: GRANT SET ON PARAMETER, from 15 on), or take it off the live \
                 database, which was not touched",
        )
    })
}

fn role(name: Option<&str>) -> String {
    name.map_or("PUBLIC".to_owned(), ident)
}

fn of_database(database: &str, role: Option<&str>) -> String {
    match role {
        None => format!("ALTER DATABASE {database}"),
        Some(role) => format!("ALTER ROLE {} IN DATABASE {database}", ident(role)),
    }
}

fn value_of(setting: &Setting) -> String {
    if !LISTS.contains(&setting.name.as_str()) {
        return literal(&setting.value);
    }
    let elements: Vec<String> = elements(&setting.value).iter().map(|e| literal(e)).collect();
    if elements.is_empty() {
        return literal("");
    }
    elements.join(", ")
}

/// The names in a list: separated by commas, in double quotes where they have to be.
fn elements(list: &str) -> Vec<String> {
    let (mut found, mut current, mut quoted) = (Vec::new(), String::new(), false);
    let mut begun = false;
    let mut chars = list.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                current.push('"');
            }
            '"' => {
                quoted = !quoted;
                begun = true;
            }
            ',' if !quoted => {
                found.push(std::mem::take(&mut current));
                begun = false;
            }
            c if c.is_whitespace() && !quoted => {}
            c => {
                current.push(c);
                begun = true;
            }
        }
    }
    if begun {
        found.push(current);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_names_are_taken_apart() {
        for (list, expected) in [
            ("\"$user\", public", vec!["$user", "public"]),
            ("app,\"a \"\"b, c\"", vec!["app", "a \"b, c"]),
            ("\"\"", vec![""]),
            ("", vec![]),
        ] {
            assert_eq!(elements(list), expected, "{list}");
        }
    }
}
