//! The live tree on a real terminal (tmux): a picture while it runs, in another size, after Ctrl-C, and when somebody comes
//! back. What is captured is compared with `golden/terminal_*`, without times.

mod fake;

use std::process::Command;
use std::time::{Duration, Instant};

use fake::{Fake, ID, WatchReply};
use rollback_proto::v1::RollbackState;

const PATIENCE: Duration = Duration::from_secs(20);

/// A terminal of its own, on a server of its own, which ends with it.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn open(fake: &Fake, columns: u16, rows: u16) -> Self {
        let terminal = Self {
            socket: fake.directory.path().join("tmux").display().to_string(),
        };
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_rollbackctl"));
        let path = format!("{}:/usr/bin:/bin", program.parent().expect("a directory").display());
        let (columns, rows) = (columns.to_string(), rows.to_string());
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &columns,
            "-y",
            &rows,
            "env",
            "-i",
            "TERM=screen",
            "PS1=$ ",
            "LC_ALL=C.UTF-8",
            &format!("PATH={path}"),
            &format!("ROLLBACKCTL_CONTEXT={}", fake.context().display()),
            "sh",
        ]);
        terminal.until("a prompt", |screen| screen.trim() == "$");
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let output = Command::new("tmux")
            // A server that is told nothing of the terminal in which the tests run.
            .env_remove("TMUX")
            .args(["-u", "-S", &self.socket])
            .args(args)
            .output()
            .expect("run tmux; tests/install-dependencies.sh installs it");
        assert!(output.status.success(), "tmux {args:?}: {output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn enter(&self, line: &str) {
        self.tmux(&["send-keys", line, "Enter"]);
    }

    /// What is on the screen once it is as wanted.
    fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let screen = self.tmux(&["capture-pane", "-p"]);
            if wanted(&screen) {
                return screen;
            }
            assert!(Instant::now() < give_up, "never on the screen: {what}\n{screen}");
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Ours alone: the socket lies in the test's own directory.
        let _ = Command::new("tmux").args(["-S", &self.socket, "kill-server"]).output();
    }
}

/// From there on: where a picture begins depends on when the terminal tells of its new size.
fn from<'a>(screen: &'a str, beginning: &str) -> &'a str {
    screen.find(beginning).map_or(screen, |at| &screen[at..])
}

/// A command has ended with this, and its shell waits for the next one.
fn has_ended(screen: &str, with: &str) -> bool {
    screen.contains(with) && screen.trim_end().ends_with('$')
}

/// Without times, and without the room that is kept for them.
fn timeless(screen: &str) -> String {
    let mut lines = Vec::new();
    for line in screen.trim_end().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut told: Vec<String> = Vec::new();
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next() {
            let is_unit = |w: &&str| {
                ["ms", "s", "min", "h"]
                    .iter()
                    .any(|unit| w.trim_end_matches(',') == *unit)
            };
            let is_number = word.chars().all(|c| c.is_ascii_digit() || c == '.') && !word.is_empty();
            if is_number && words.peek().is_some_and(is_unit) {
                words.next();
                told.push("TIME".to_owned());
            } else {
                told.push(word.to_owned());
            }
        }
        let indent = line.len() - line.trim_start().len();
        lines.push(format!("{:indent$}{}", "", told.join(" ")));
    }
    lines.join("\n")
}

macro_rules! golden {
    ($name:literal, $text:expr) => {
        insta::with_settings!({
            snapshot_path => "golden",
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!($name, timeless($text)) })
    };
}

#[test]
fn resize_leave_and_come_back() {
    let fake = Fake::start(RollbackState::Verified, false);
    // One host done, the other on its way; and the same again for whoever comes back.
    fake.state()
        .watch_replies
        .extend([WatchReply::HangsAfter(5), WatchReply::HangsAfter(5)]);
    let terminal = Terminal::open(&fake, 100, 24);
    terminal.enter("clear; rollbackctl rollback watch latest; echo exit=$?");
    fake.wait_for_hang();
    let running = |screen: &str| screen.contains("app-2/api") && screen.contains("1/2");
    golden!("terminal_running", &terminal.until("one of two steps", running));

    // Half as wide: every line is cut, none is wrapped, and nothing of the old picture is left.
    terminal.tmux(&["resize-window", "-x", "50", "-y", "12"]);
    let narrow = |screen: &str| running(screen) && screen.contains('…') && screen.matches("rollback to").count() == 1;
    let screen = terminal.until("a narrow tree", narrow);
    golden!("terminal_narrow", from(&screen, "rollback to"));

    terminal.tmux(&["send-keys", "C-c"]);
    let left = terminal.until("the shell again", |screen| has_ended(screen, "exit=7"));
    golden!("terminal_left", from(&left, "rollback to"));
    assert_eq!(left.matches("rollback to").count(), 1, "one picture stays: {left}");

    terminal.tmux(&["resize-window", "-x", "100", "-y", "24"]);
    terminal.enter("clear; rollbackctl rollback watch latest; echo exit=$?");
    fake.wait_for_hang();
    terminal.until("the tree again", running);
    terminal.tmux(&["send-keys", "C-c"]);
    terminal.until("the shell again", |screen| has_ended(screen, "exit=7"));

    terminal.enter(&format!("clear; rollbackctl rollback watch {ID}; echo exit=$?"));
    let ended = terminal.until("the end", |screen| has_ended(screen, "exit=0"));
    golden!("terminal_ended", from(&ended, "VERIFIED"));
}
