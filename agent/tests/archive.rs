//! Releases that come from archives: good ones in every format, and hostile ones, each written by the crates that write
//! archives or by hand where they refuse to.

mod host;

use std::collections::BTreeMap;
use std::io::{Cursor, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use host::{Host, read, write};
use rollback_agent::driver::release_dir::{ReleaseDirConfig, ReleaseDirDriver};
use rollback_agent::driver::{Action, Driver, Retained};
use rollback_agent::files::sha256_hex;
use rollback_proto::problem::{Code, Problem};
use zip::write::SimpleFileOptions;

const TAR_ENDS: [&str; 4] = ["tar.gz", "tgz", "tar.zst", "tar"];

/// What `(mode & S_IFMT)` says in a ZIP entry.
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// One entry, as it will stand in the archive.
#[derive(Clone)]
struct Item {
    name: Vec<u8>,
    /// The type byte of a tape archive.
    kind: u8,
    mode: u32,
    /// Content, or where a link points to.
    content: Vec<u8>,
}

fn item(name: impl AsRef<[u8]>, kind: u8, mode: u32, content: impl AsRef<[u8]>) -> Item {
    Item {
        name: name.as_ref().to_vec(),
        kind,
        mode,
        content: content.as_ref().to_vec(),
    }
}

fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Item {
    item(name, b'0', 0o644, content)
}

fn link(name: &str, target: &str) -> Item {
    item(name, b'2', 0o777, target)
}

fn directory(name: &str) -> Item {
    item(name, b'5', 0o755, "")
}

/// Names and targets go into the header as they are: the crate's own functions would refuse most of them.
fn tar(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        let is_link = matches!(item.kind, b'1' | b'2');
        let content: &[u8] = if is_link { b"" } else { &item.content };
        let mut header = tar::Header::new_gnu();
        if item.name.len() > 100 {
            let mut long = tar::Header::new_gnu();
            long.set_entry_type(tar::EntryType::GNULongName);
            long.set_size(item.name.len() as u64 + 1);
            long.set_cksum();
            builder
                .append(&long, [&item.name[..], b"\0"].concat().as_slice())
                .expect("long name");
        } else {
            header.as_old_mut().name[..item.name.len()].copy_from_slice(&item.name);
        }
        if is_link {
            header.as_old_mut().linkname[..item.content.len()].copy_from_slice(&item.content);
        }
        header.set_entry_type(tar::EntryType::new(item.kind));
        header.set_mode(item.mode);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).expect("append");
    }
    builder.into_inner().expect("tar")
}

fn compressed(tar: &[u8], end: &str) -> Vec<u8> {
    match end {
        "tar" => tar.to_vec(),
        "tar.zst" => {
            // As the program `zstd` does.
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).expect("encoder");
            encoder.include_checksum(true).expect("checksum");
            encoder.write_all(tar).expect("compress");
            encoder.finish().expect("compress")
        }
        _ => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).expect("compress");
            encoder.finish().expect("compress")
        }
    }
}

/// The crate writes regular files; kind and permissions of an entry are then set in the central directory.
fn zip(items: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (at, (_, _, content)) in items.iter().enumerate() {
        writer
            .start_file(placeholder(at), SimpleFileOptions::default())
            .expect("start");
        writer.write_all(content).expect("write");
    }
    let bytes = writer.finish().expect("zip").into_inner();
    let names: BTreeMap<Vec<u8>, (&str, u32)> = items
        .iter()
        .enumerate()
        .map(|(at, (name, mode, _))| (placeholder(at).into_bytes(), (*name, *mode)))
        .collect();
    renamed(&bytes, &names)
}

fn placeholder(at: usize) -> String {
    format!("placeholder-{at:04}")
}

/// Copies a ZIP record by record with other names. Sizes and offsets that depend on them are corrected.
fn renamed(bytes: &[u8], names: &BTreeMap<Vec<u8>, (&str, u32)>) -> Vec<u8> {
    let half = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let end = bytes.len() - 22;
    assert_eq!(&bytes[end..end + 4], b"PK\x05\x06");
    let (mut out, mut central, mut at) = (Vec::new(), Vec::new(), word(end + 16) as usize);
    while at < end {
        let (name_length, extra, comment) = (half(at + 28), half(at + 30), half(at + 32));
        let (name, mode) = names[&bytes[at + 46..at + 46 + name_length]];
        let local = word(at + 42) as usize;
        let (local_name, local_extra) = (half(local + 26), half(local + 28));
        let data = local + 30 + local_name + local_extra;
        let offset = out.len() as u32;
        let length = (name.len() as u16).to_le_bytes();
        out.extend_from_slice(&bytes[local..local + 26]);
        out.extend_from_slice(&length);
        out.extend_from_slice(&bytes[local + 28..local + 30]);
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&bytes[local + 30 + local_name..data + word(at + 20) as usize]);
        let mut record = bytes[at..at + 46].to_vec();
        // Made by a Unix system: only then do permissions count.
        record[5] = 3;
        record[28..30].copy_from_slice(&length);
        record[38..42].copy_from_slice(&(mode << 16).to_le_bytes());
        record[42..46].copy_from_slice(&offset.to_le_bytes());
        central.extend_from_slice(&record);
        central.extend_from_slice(name.as_bytes());
        central.extend_from_slice(&bytes[at + 46 + name_length..at + 46 + name_length + extra + comment]);
        at += 46 + name_length + extra + comment;
    }
    let mut last = bytes[end..].to_vec();
    last[12..16].copy_from_slice(&(central.len() as u32).to_le_bytes());
    last[16..20].copy_from_slice(&(out.len() as u32).to_le_bytes());
    [out, central, last].concat()
}

struct Place {
    host: Host,
    root: PathBuf,
    driver: ReleaseDirDriver,
}

/// v3.0.0 is live; there is an empty `backups`.
fn place_with(extra: &str) -> Place {
    let host = Host::new();
    let root = host.path().join("app");
    write(&root.join("releases/v3.0.0/app.js"), "// v3.0.0");
    std::fs::create_dir_all(root.join("backups")).expect("directory");
    std::os::unix::fs::symlink("releases/v3.0.0", root.join("current")).expect("link");
    let text = format!("root = '{}'\n{extra}", root.display());
    let config: ReleaseDirConfig = toml::from_str(&text).expect("config");
    let driver = ReleaseDirDriver::new("part", config, Arc::clone(&host.vault)).expect("driver");
    Place { host, root, driver }
}

fn place() -> Place {
    place_with("")
}

/// Everything on the host: paths, modes and content.
fn everything(dir: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).expect("read directory") {
            let path = entry.expect("entry").path();
            let metadata = std::fs::symlink_metadata(&path).expect("stat");
            let content = if metadata.is_file() {
                std::fs::read(&path).expect("read")
            } else {
                Vec::new()
            };
            if metadata.is_dir() {
                pending.push(path.clone());
            }
            all.insert(path, (metadata.mode(), content));
        }
    }
    all
}

impl Place {
    async fn resolve(&self, name: &str, bytes: &[u8]) -> Result<Retained, Problem> {
        std::fs::write(self.root.join("backups").join(name), bytes).expect("write");
        self.driver.resolve("v2.9.0").await
    }

    /// The archive is refused, and nothing at all was written by looking at it.
    async fn refuses(&self, name: &str, bytes: &[u8], why: &str) {
        let path = self.root.join("backups").join(name);
        std::fs::write(&path, bytes).expect("write");
        let before = everything(self.host.path());
        let problem = match self.driver.resolve("v2.9.0").await {
            Err(problem) => problem,
            Ok(found) => panic!("{name} ({why}) was accepted: {}", found.summary),
        };
        assert_eq!(problem.code, Code::ArchiveRefused, "{name} ({why}): {problem}");
        assert!(problem.message.contains(why), "{name}: {:?} is not in: {problem}", why);
        assert!(
            everything(self.host.path()) == before,
            "{name} ({why}) left something behind"
        );
        std::fs::remove_file(path).expect("remove");
    }

    async fn stage(&self, found: &Retained) -> PathBuf {
        let live = self.driver.observe().await.expect("observe").revision;
        let step = self.host.step(Action::Stage, &live, &found.revision);
        self.driver.stage(&step).await.expect("stage");
        self.root.join("releases/v2.9.0")
    }
}

/// A release as its makers would pack it.
fn good(prefix: &str) -> Vec<Item> {
    let at = |name: &str| format!("{prefix}{name}");
    let mut items = vec![
        file(at("app.js"), "// v2.9.0"),
        item(at("bin/run"), b'0', 0o775, "#!/bin/sh\n"),
        item(at("lib/deep/data"), b'0', 0o600, "x"),
        link(&at("shortcut"), "lib/deep"),
        link(&at("lib/back"), "../shortcut/data"),
        link(&at("dangling"), "lib/none"),
        item(at("empty/"), b'5', 0o2775, ""),
    ];
    if !prefix.is_empty() {
        items.insert(0, directory(prefix));
    }
    items
}

fn good_zip(prefix: &str) -> Vec<u8> {
    let named: Vec<(String, u32, Vec<u8>)> = good(prefix)
        .into_iter()
        .map(|i| {
            let kind = match i.kind {
                b'2' => LINK,
                b'5' => 0o040_000,
                _ => FILE,
            };
            let name = String::from_utf8(i.name).expect("name");
            let slash = if kind == 0o040_000 && !name.ends_with('/') {
                "/"
            } else {
                ""
            };
            (format!("{name}{slash}"), kind | i.mode, i.content)
        })
        .collect();
    let items: Vec<(&str, u32, &[u8])> = named.iter().map(|(n, m, c)| (n.as_str(), *m, c.as_slice())).collect();
    zip(&items)
}

#[tokio::test]
async fn every_format_becomes_the_same_release() {
    let mut digests = Vec::new();
    for prefix in ["", "./", "v2.9.0/", "zekka-2.9.0/"] {
        for end in TAR_ENDS.into_iter().chain(["zip"]) {
            let p = place();
            let items = good(prefix);
            let bytes = match end {
                "zip" => good_zip(prefix.trim_start_matches("./")),
                end => compressed(&tar(&items), end),
            };
            let name = format!("v2.9.0.{end}");
            let list = format!("{}  {name}\n", sha256_hex(&bytes));
            write(&p.root.join(format!("backups/{name}.sha256")), &list);
            let found = p
                .resolve(&name, &bytes)
                .await
                .unwrap_or_else(|e| panic!("{name} {prefix}: {e}"));
            assert_eq!(found.revision.version, "v2.9.0");
            assert!(found.summary.contains("SHA-256 checked"), "{}", found.summary);
            assert_eq!(
                host::names(&p.root),
                ["backups", "current", "releases"],
                "nothing is written beneath root"
            );
            let dir = p.stage(&found).await;
            assert_eq!(read(&dir.join("app.js")), "// v2.9.0");
            assert_eq!(read(&dir.join("lib/back")), "x", "through two links");
            let mode = |name: &str| std::fs::metadata(dir.join(name)).expect(name).permissions().mode() & 0o7777;
            assert_eq!(
                (mode("bin/run"), mode("lib/deep/data"), mode("empty")),
                (0o755, 0o600, 0o755)
            );
            digests.push(found.revision.digest);
        }
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "{digests:?}");
}

#[tokio::test]
async fn a_directory_of_another_name_belongs_to_the_release() {
    let p = place();
    let found = p
        .resolve("v2.9.0.tar", &tar(&[file("package/app.js", "x")]))
        .await
        .expect("resolve");
    assert!(p.stage(&found).await.join("package/app.js").is_file());
}

/// Links that leave, absolute paths, `..`, devices, and everything else that a release does not have: in each tape format.
#[tokio::test]
async fn trap_hostile_tape_archives() {
    let p = place();
    let long = "n".repeat(300);
    let deep = "d/".repeat(80) + "f";
    let far = vec!["x".repeat(200); 20].join("/");
    let ok = file("ok", "x");
    let cases: Vec<(&str, &str, Vec<Item>)> = vec![
        ("/etc/cron.d/evil", "absolute", vec![file("/etc/cron.d/evil", "x")]),
        ("../evil", "..", vec![file("../evil", "x")]),
        ("a/../../evil", "..", vec![file("a/../../evil", "x")]),
        ("evil", "out of the release", vec![link("evil", "/etc/shadow")]),
        ("evil", "out of the release", vec![link("evil", "../outside")]),
        (
            "v2.9.0/evil",
            "beneath",
            vec![
                directory("v2.9.0"),
                link("v2.9.0/evil", "."),
                file("v2.9.0/evil/x", "x"),
            ],
        ),
        // Each of the two looks harmless: `up` leads to the top, and `far` would be `deep/er` if links were names.
        (
            "out",
            "out of the release",
            vec![
                directory("deep/er"),
                link("deep/er/up", "../.."),
                link("out", "deep/er/up/../x"),
            ],
        ),
        ("a", "circle", vec![link("a", "b"), link("b", "a")]),
        // Within the archive's top, but out of the release that remains when the top is taken away.
        (
            "evil",
            "out of the release",
            vec![file("v2.9.0/ok", "x"), link("v2.9.0/evil", "../x")],
        ),
        // The file comes before the link that it would be written through, and after it.
        ("dir/x", "beneath", vec![file("dir/x", "x"), link("dir", "/tmp")]),
        (
            "dir/x",
            "beneath",
            vec![link("dir", "lib"), directory("lib"), file("dir/x", "x")],
        ),
        ("ok/x", "beneath", vec![ok.clone(), file("ok/x", "x")]),
        ("evil", "hard link", vec![item("evil", b'1', 0o644, "/etc/shadow")]),
        ("evil", "hard link", vec![item("evil", b'1', 0o644, "../outside")]),
        (
            "evil",
            "hard link",
            vec![link("l", "ok"), item("evil", b'1', 0o644, "l"), ok.clone()],
        ),
        ("evil", "a device", vec![item("evil", b'3', 0o644, "")]),
        ("evil", "a device", vec![item("evil", b'4', 0o644, "")]),
        ("evil", "a pipe", vec![item("evil", b'6', 0o644, "")]),
        ("evil", "of a kind", vec![item("evil", b'M', 0o644, "")]),
        ("bin/su", "set-user-ID", vec![item("bin/su", b'0', 0o4755, "x")]),
        ("bin/wall", "set-group-ID", vec![item("bin/wall", b'0', 0o2755, "x")]),
        ("ok", "twice", vec![ok.clone(), file("./ok", "other")]),
        ("ok", "twice", vec![ok.clone(), link("ok", "lib")]),
        ("ok", "twice", vec![directory("ok"), ok.clone()]),
        ("bad-", "not UTF-8", vec![file(b"bad-\xff", "x")]),
        ("nnn", "longer than 255", vec![file(&long, "x")]),
        ("d/d/d", "limits.depth", vec![file(&deep, "x")]),
        ("xxx", "longer than 3000", vec![file(&far, "x")]),
        ("v2.9.0", "no file", vec![directory("v2.9.0")]),
    ];
    for (name, why, items) in cases {
        let items = [vec![file("first", "harmless")], items].concat();
        let items = if why == "no file" || name == "evil" && why == "out of the release" && items.len() == 3 {
            // These are about the directory at the top, which must be the only one.
            items[1..].to_vec()
        } else {
            items
        };
        for end in TAR_ENDS {
            let bytes = compressed(&tar(&items), end);
            p.refuses(&format!("v2.9.0.{end}"), &bytes, why).await;
            if why != "no file" {
                p.refuses(&format!("v2.9.0.{end}"), &bytes, name).await;
            }
        }
    }
}

#[tokio::test]
async fn trap_hostile_zip_archives() {
    let p = place();
    let deep = "d/".repeat(80) + "f";
    type Entry<'a> = (&'a str, u32, &'a [u8]);
    let cases: Vec<(&str, &str, Vec<Entry<'_>>)> = vec![
        (
            "/etc/cron.d/evil",
            "absolute",
            vec![("/etc/cron.d/evil", FILE | 0o644, b"x")],
        ),
        ("../evil", "..", vec![("../evil", FILE | 0o644, b"x")]),
        (
            "evil",
            "out of the release",
            vec![("evil", LINK | 0o777, b"/etc/shadow")],
        ),
        (
            "evil",
            "out of the release",
            vec![("evil", LINK | 0o777, b"../outside")],
        ),
        (
            "out",
            "out of the release",
            vec![
                ("deep/er/up", LINK | 0o777, b"../.."),
                ("out", LINK | 0o777, b"deep/er/up/../x"),
            ],
        ),
        (
            "dir/x",
            "beneath",
            vec![("dir", LINK | 0o777, b"/tmp"), ("dir/x", FILE | 0o644, b"x")],
        ),
        ("evil", "a device", vec![("evil", 0o060_644, b"")]),
        ("evil", "a device", vec![("evil", 0o020_644, b"")]),
        ("evil", "a pipe", vec![("evil", 0o010_644, b"")]),
        ("evil", "a socket", vec![("evil", 0o140_644, b"")]),
        ("bin/su", "set-user-ID", vec![("bin/su", FILE | 0o4755, b"x")]),
        (
            "",
            "twice",
            vec![("ok", FILE | 0o644, b"x"), ("ok", FILE | 0o644, b"other")],
        ),
        (
            "ok",
            "twice",
            vec![("ok", FILE | 0o644, b"x"), ("./ok", FILE | 0o644, b"other")],
        ),
        ("evil", "backslash", vec![("..\\evil", FILE | 0o644, b"x")]),
        ("d/d/d", "limits.depth", vec![(&deep, FILE | 0o644, b"x")]),
    ];
    for (name, why, items) in cases {
        let items = [vec![("first", FILE | 0o644, &b"harmless"[..])], items].concat();
        let bytes = zip(&items);
        p.refuses("v2.9.0.zip", &bytes, why).await;
        p.refuses("v2.9.0.zip", &bytes, name).await;
    }
}

#[tokio::test]
async fn trap_bombs() {
    // Small in the archive, large outside of it.
    let zeros = vec![0u8; 20 << 20];
    let p = place();
    let bomb = tar(&[file("zeros", &zeros)]);
    for end in ["tar.gz", "tar.zst"] {
        p.refuses(&format!("v2.9.0.{end}"), &compressed(&bomb, end), "limits.ratio")
            .await;
    }
    p.refuses("v2.9.0.zip", &zip(&[("zeros", FILE | 0o644, &zeros)]), "limits.ratio")
        .await;
    // Behind the end of the archive, where no entry is.
    let tail = [tar(&[file("ok", "x")]), zeros.clone()].concat();
    p.refuses("v2.9.0.tar.gz", &compressed(&tail, "tar.gz"), "limits.ratio")
        .await;
    // A name of three megabytes, which would be read into memory before anybody saw it.
    let name = tar(&[file("n".repeat(3 << 20), "x")]);
    for end in TAR_ENDS {
        p.refuses(&format!("v2.9.0.{end}"), &compressed(&name, end), "1 MiB of headers")
            .await;
    }

    let small = place_with("limits = { bytes = '1MB', entries = 10, depth = 3 }");
    let half = vec![7u8; 600_000];
    let many: Vec<Item> = (0..11).map(|n| file(format!("f{n}"), "")).collect();
    let implied: Vec<Item> = (0..6).map(|n| file(format!("d{n}/f"), "")).collect();
    let two = [file("a", &half), file("b", &half)];
    for end in TAR_ENDS {
        let name = format!("v2.9.0.{end}");
        small.refuses(&name, &compressed(&tar(&two), end), "limits.bytes").await;
        small
            .refuses(&name, &compressed(&tar(&many), end), "limits.entries")
            .await;
        small
            .refuses(&name, &compressed(&tar(&implied), end), "limits.entries")
            .await;
        small
            .refuses(&name, &compressed(&tar(&[file("a/b/c/d", "")]), end), "limits.depth")
            .await;
    }
    let two: [(&str, u32, &[u8]); 2] = [("a", FILE | 0o644, &half), ("b", FILE | 0o644, &half)];
    small.refuses("v2.9.0.zip", &zip(&two), "limits.bytes").await;
    // A hard link costs as much as the file when the release is restored.
    let hard = [file("a", &half), item("b", b'1', 0o644, "a")];
    small.refuses("v2.9.0.tar", &tar(&hard), "limits.bytes").await;
}

#[tokio::test]
async fn trap_truncated_and_damaged_archives() {
    let p = place();
    let noise: Vec<u8> = (0..40_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let items = [file("a", &noise), file("b", &noise)];
    let plain = tar(&items);
    let zipped = zip(&[("a", FILE | 0o644, &noise), ("b", FILE | 0o644, &noise)]);
    for end in TAR_ENDS.into_iter().chain(["zip"]) {
        let whole = if end == "zip" {
            zipped.clone()
        } else {
            compressed(&plain, end)
        };
        let name = format!("v2.9.0.{end}");
        // The last one is a tape archive's first entry and its padding: a whole number of entries, and no end.
        for length in [
            0,
            1,
            100,
            whole.len() / 2,
            whole.len() - 1100,
            whole.len() - 1,
            512 + 40_448,
        ] {
            // An uncompressed tape archive ends with more zeros than it needs.
            if end != "tar" || length != whole.len() - 1 {
                p.refuses(&name, &whole[..length.min(whole.len() - 1)], "backups").await;
            }
        }
        if end != "tar" {
            let mut flipped = whole.clone();
            flipped[whole.len() / 2] ^= 0x10;
            p.refuses(&name, &flipped, "backups").await;
        }
    }
    let appended = [plain, b"#!/bin/sh".to_vec()].concat();
    p.refuses("v2.9.0.tar", &appended, "no end").await;
    p.refuses(
        "v2.9.0.tar.gz",
        &[compressed(&tar(&items), "tar.gz"), vec![1; 100]].concat(),
        "backups",
    )
    .await;
    p.refuses("v2.9.0.zip", b"not an archive at all", "backups").await;
}

#[tokio::test]
async fn sums_beside_and_inside_are_checked() {
    let p = place();
    let sum = |content: &str| sha256_hex(content.as_bytes());
    let list = format!("{}  ./app.js\n{} *lib/x\n", sum("// v2.9.0"), sum("x"));
    let release = |list: &str| {
        tar(&[
            file("v2.9.0/app.js", "// v2.9.0"),
            file("v2.9.0/lib/x", "x"),
            file("v2.9.0/lib/unlisted", "y"),
            file("v2.9.0/MANIFEST.sha256", list),
        ])
    };
    let found = p.resolve("v2.9.0.tar", &release(&list)).await.expect("resolve");
    assert!(
        found
            .summary
            .contains("2 files checked against MANIFEST.sha256, 1 are not listed"),
        "{}",
        found.summary
    );
    assert!(found.summary.contains("no v2.9.0.tar.sha256"), "{}", found.summary);
    p.refuses(
        "v2.9.0.tar",
        &release(&list.replace(&sum("x"), &sum("y"))),
        "lib/x differs",
    )
    .await;
    p.refuses(
        "v2.9.0.tar",
        &release(&format!("{list}{}  gone\n", sum("z"))),
        "gone is listed",
    )
    .await;
    p.refuses("v2.9.0.tar", &release("rubbish"), "line 1").await;

    let bytes = release(&list);
    let beside = p.root.join("backups/v2.9.0.tar.sha256");
    write(&beside, &format!("{}  v2.9.0.tar\n", sum("another archive")));
    p.refuses("v2.9.0.tar", &bytes, "its SHA-256 is").await;
    write(&beside, &format!("{}  v3.0.0.tar\n", sha256_hex(&bytes)));
    p.refuses("v2.9.0.tar", &bytes, "no line for v2.9.0.tar").await;
    std::fs::remove_file(&beside).expect("remove");
    write(
        &p.root.join("backups/v2.9.0.SHA256SUMS"),
        &format!("{}  app.js\n", sum("other")),
    );
    p.refuses("v2.9.0.tar", &bytes, "app.js differs").await;
}

#[tokio::test]
async fn what_is_excluded_is_neither_kept_nor_a_part_of_the_digest() {
    let p = place_with("exclude = ['tmp', '**/*.log']");
    let with = tar(&[
        file("app.js", "x"),
        file("tmp/cache", "secret-cache"),
        file("lib/a.log", "l"),
        directory("lib"),
    ]);
    let found = p.resolve("v2.9.0.tar", &with).await.expect("resolve");
    assert!(!p.host.vault.has(&sha256_hex(b"secret-cache")));
    let dir = p.stage(&found).await;
    assert_eq!(host::names(&dir), ["app.js", "lib"]);
}

#[tokio::test]
async fn trap_large_files_that_are_kept_already_or_left_out_count_as_headers_of_the_next_one() {
    let p = place_with("exclude = ['cache.bin']");
    // Larger than all headers of an entry may be, and hardly compressible.
    let large: Vec<u8> = (0..2u32 << 20).map(|n| (n.wrapping_mul(n) >> 9) as u8).collect();
    let archive = tar(&[
        file("app.js", "// v2.9.0"),
        file("cache.bin", &large),
        file("large.bin", &large),
        file("later.js", "// later"),
    ]);
    let bytes = compressed(&archive, "tar.gz");
    let first = p.resolve("v2.9.0.tar.gz", &bytes).await.expect("resolve");
    // Now the vault has it.
    let again = p.resolve("v2.9.0.tar.gz", &bytes).await.expect("resolve again");
    assert_eq!(first.revision, again.revision);
    let dir = p.stage(&again).await;
    assert_eq!(host::names(&dir), ["app.js", "large.bin", "later.js"]);
    assert_eq!(std::fs::read(dir.join("large.bin")).expect("read"), large);
}
