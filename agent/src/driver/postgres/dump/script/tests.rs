use super::*;

const END: &str = "\n--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict x\n\n";

fn pieces(text: &str) -> Result<Vec<Piece>, Problem> {
    let mut script = Script::new(Box::new(std::io::Cursor::new(text.as_bytes().to_vec())), "x.sql");
    let mut all = Vec::new();
    while let Some(piece) = script.next()? {
        all.push(piece);
    }
    Ok(all)
}

/// The statements of a script, each on one line; rows as they are.
fn read(text: &str) -> Vec<String> {
    let all = pieces(&format!("{text}{END}")).expect("a script that may be run");
    all.into_iter()
        .map(|piece| match piece {
            Piece::Statement { sql, .. } | Piece::Copy { sql, .. } => sql,
            Piece::Rows(rows) => String::from_utf8(rows).expect("UTF-8"),
            Piece::EndOfRows => "(end)".to_owned(),
        })
        .collect()
}

#[test]
fn what_pg_dump_writes_is_cut_where_psql_would_cut_it() {
    let one = |statement: &str| assert_eq!(read(&format!("{statement};")), [statement], "{statement}");
    for statement in [
        "SELECT 'a;b', \"c;d\", 'it''s; so', E'\\';', $$;$$, $x$ $$;$y$; $x$",
        "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $_$ BEGIN RETURN $1; END $_$",
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END",
        "CREATE RULE r AS ON INSERT TO t DO (DELETE FROM u; DELETE FROM v)",
        "SELECT a$b$c",
        "CREATE TABLE begin_end (\"end\" int)",
        "SELECT 'C:\\'",
    ] {
        one(statement);
    }
    assert_eq!(read("SELECT /* ; /* ; */ ; */ 1;"), ["SELECT   1"]);
    assert_eq!(
        read("SET x = 1; -- a; b\n\nSELECT 2 -- c;\n;;"),
        ["SET x = 1;", "SELECT 2 \n;"].map(|s| s.trim_end_matches(';').to_owned())
    );
    let off = "SET standard_conforming_strings = off;\nSELECT 'a\\';b';\nSET standard_conforming_strings = on;\nSELECT 'a\\';";
    assert_eq!(read(off).len(), 4);
    let rows = "COPY public.t (a, b) FROM stdin;\n1\t\\N;\n\\\\.\t\\.x\n\\.\nSELECT 1;";
    assert_eq!(
        read(rows),
        [
            "COPY public.t (a, b) FROM stdin",
            "1\t\\N;\n\\\\.\t\\.x\n",
            "(end)",
            "SELECT 1"
        ]
    );
    assert_eq!(
        read("COPY t (a) FROM stdin;\n\\.\n"),
        ["COPY t (a) FROM stdin", "", "(end)"]
    );
}

#[test]
fn hostile_scripts_are_refused() {
    for (script, part) in [
        ("\\connect shop\n", "\\connect"),
        ("\\c shop\nDROP TABLE users;\n", "\\c"),
        ("SELECT 1 \\! rm -rf /\n;", "\\!"),
        ("SELECT 1; \\! id\n", "\\!"),
        ("  \\i /etc/passwd\n", "\\i"),
        ("SELECT 1 \\gexec\n", "\\gexec"),
        ("\\restrict x\n\\o |sh\n", "\\o"),
        ("SELECT 1 \\restrict x\n;", "\\restrict"),
        ("DROP DATABASE shop;", "DROP DATABASE"),
        ("create  /* x */ database evil;", "CREATE"),
        ("ALTER DATABASE shop SET search_path TO evil;", "ALTER DATABASE"),
        ("ALTER SYSTEM SET archive_command = 'x';", "ALTER SYSTEM"),
        ("CREATE ROLE evil SUPERUSER;", "CREATE ROLE"),
        ("ALTER USER postgres PASSWORD 'x';", "ALTER USER"),
        ("GRANT postgres TO evil;", "of a role"),
        ("GRANT ALL ON DATABASE shop TO evil;", "ON DATABASE"),
        ("COMMENT ON DATABASE shop IS 'x';", "DATABASE"),
        ("COPY t TO PROGRAM 'sh';", "copies"),
        ("COPY t FROM PROGRAM 'sh';", "copies"),
        ("COPY t FROM '/etc/passwd';", "copies"),
        ("COPY t (a) FROM stdin; SELECT 1;\n1\n\\.\n", "copies"),
        ("CREATE TABLESPACE t LOCATION '/';", "CREATE TABLESPACE"),
    ] {
        let problem = pieces(&format!("{script}{END}")).expect_err(script);
        assert_eq!(problem.code, Code::RestoreFailed);
        assert!(problem.message.contains(part), "{script}: {problem}");
    }
    for harmless in [
        "CREATE USER MAPPING FOR plain SERVER s;",
        "GRANT SELECT ON TABLE t TO plain;",
        "SELECT '\\! id';",
        "COMMENT ON TABLE t IS '\n\\connect x\n';",
        "CREATE FUNCTION f() RETURNS void AS $$\n\\connect x\nDROP DATABASE x;\n$$ LANGUAGE sql;",
        "COPY t FROM stdin;\n\\\\connect x\nDROP DATABASE x;\n\\.\n",
    ] {
        pieces(&format!("{harmless}{END}")).expect(harmless);
    }
}

#[test]
fn a_script_that_was_cut_off_anywhere_is_noticed() {
    let whole = format!(
        "SET x = 0;\nCREATE TABLE t (a text);\nCOPY t (a) FROM stdin;\none\ntwo\n\\.\n\nSELECT $$;$$, 'x';\n{}",
        END.trim_end_matches("\n\n\\unrestrict x\n\n").trim_end_matches("--")
    );
    pieces(&whole).expect("whole");
    for length in 0..whole.trim_end().len() {
        pieces(&whole[..length]).expect_err(&whole[..length]);
    }
    // Something follows the mark, and ends before its own.
    pieces(&format!("{whole}SELECT 1;\n")).expect_err("a second dump");
}

#[test]
fn subscriptions_are_left_out() {
    for (sql, about) in [
        ("CREATE SUBSCRIPTION s CONNECTION 'x' PUBLICATION p", true),
        ("ALTER SUBSCRIPTION s OWNER TO plain", true),
        ("COMMENT ON SUBSCRIPTION s IS 'x'", true),
        ("CREATE PUBLICATION subscription", false),
        ("COMMENT ON TABLE subscription IS 'x'", false),
    ] {
        assert_eq!(super::super::statement::is_about_subscriptions(sql), about, "{sql}");
    }
}

#[test]
fn roles_and_extensions_that_a_dump_needs() {
    let text = format!(
        "CREATE EXTENSION IF NOT EXISTS pgcrypto WITH SCHEMA public;\nALTER TABLE public.t OWNER TO plain;\n\
         ALTER FUNCTION public.f(a text) OWNER TO \"Odd name\";\nGRANT SELECT ON TABLE t TO reader;\nGRANT ALL ON SCHEMA public TO PUBLIC;\n\
         REVOKE ALL ON TABLE t FROM nobody;\nALTER DEFAULT PRIVILEGES FOR ROLE maker IN SCHEMA s GRANT SELECT ON TABLES TO taker;\n\
         SET SESSION AUTHORIZATION 'someone';\nINSERT INTO t VALUES ('ALTER TABLE t OWNER TO x');\n{END}"
    );
    let survey = Survey::of_text(&text).expect("a script");
    let roles: Vec<&str> = survey.roles.iter().map(String::as_str).collect();
    assert_eq!(roles, ["Odd name", "maker", "plain", "reader", "someone", "taker"]);
    assert_eq!(survey.extensions.iter().collect::<Vec<_>>(), ["pgcrypto"]);
}
