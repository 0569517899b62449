//! `cargo xtask launch` with shell scripts as ranks: their environment, output, signals and
//! restarts.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The command that launches `sh -c script`, not yet started. `$DIR` is the folder of the test.
fn launcher(folder: &TempDir, flags: &str, script: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("launch").args(flags.split_whitespace()).args(["sh", "-c", script]);
    command.env("DIR", folder.path()).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn launch(folder: &TempDir, flags: &str, script: &str) -> (i32, String, String) {
    let Output { status, stdout, stderr } = launcher(folder, flags, script).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code().unwrap(), text(&stdout), text(&stderr))
}

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_true() {
        assert!(Instant::now() < deadline, "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Script of a rank that writes its process id to the file `pids` and waits. On SIGTERM it writes
/// its rank to the file `saved` and succeeds.
const SAVES_ON_TERM: &str = "trap 'echo $RANK >> $DIR/saved; exit 0' TERM; \
                             echo $$ >> $DIR/pids; while :; do sleep 0.05; done";

/// Starts two such ranks and returns the launcher and the process ids of the ranks.
fn two_waiting_ranks(folder: &TempDir) -> (Child, Vec<u32>) {
    let child = launcher(folder, "--nproc-per-node 2", SAVES_ON_TERM).spawn().unwrap();
    let path = folder.path().join("pids");
    wait_until("ranks start", || lines(&path).len() == 2);
    (child, lines(&path).iter().map(|line| line.parse().unwrap()).collect())
}

fn is_alive(pid: u32) -> bool {
    // A zombie has ended already.
    fs::read_to_string(format!("/proc/{pid}/status"))
        .is_ok_and(|status| !status.lines().any(|line| line.starts_with("State:\tZ")))
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

fn saved(folder: &TempDir) -> BTreeSet<String> {
    lines(&folder.path().join("saved")).into_iter().collect()
}

#[test]
fn ranks_get_their_environment_and_only_rank_0_prints_without_a_prefix() {
    let script = "echo $RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR; \
                  echo $MASTER_PORT >> $DIR/ports";
    let folder = folder();
    let (code, stdout, stderr) = launch(
        &folder,
        "--nnodes 2 --node-rank 1 --nproc_per_node=2 --master-addr 10.9.8.7",
        script,
    );
    assert_eq!(code, 0, "{stderr}");
    let mut printed: Vec<&str> = stdout.lines().collect();
    printed.sort_unstable();
    assert_eq!(printed, ["[rank 2] 2 0 4 2 10.9.8.7", "[rank 3] 3 1 4 2 10.9.8.7"]);
    assert_eq!(lines(&folder.path().join("ports")), ["29500", "29500"]);

    let folder = self::folder();
    let (code, stdout, _) = launch(&folder, "--nproc-per-node 2", script);
    assert_eq!(code, 0);
    let mut printed: Vec<&str> = stdout.lines().collect();
    printed.sort_unstable();
    assert_eq!(printed, ["0 0 2 2 127.0.0.1", "[rank 1] 1 1 2 2 127.0.0.1"]);
    let ports = lines(&folder.path().join("ports"));
    assert_eq!(ports[0], ports[1], "ranks of one attempt use the same port");
}

#[test]
fn ranks_compute_on_disjoint_cores() {
    let script = "grep Cpus_allowed_list /proc/self/status; echo threads $OMP_NUM_THREADS";
    let folder = folder();
    let mut command = launcher(&folder, "--nproc-per-node 2", script);
    let output = command.env_remove("OMP_NUM_THREADS").output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let bound: BTreeSet<&str> =
        stdout.lines().filter_map(|line| Some(line.split_once("list:")?.1.trim())).collect();
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(bound.len(), cores.min(2), "one set of cores per rank: {stdout}");
    if cores == 2 {
        assert_eq!(stdout.matches("threads 1").count(), 2, "{stdout}");
    }
}

#[test]
fn first_failing_rank_is_reported_with_its_last_output_and_exit_code() {
    let script = "if [ $RANK = 1 ]; then echo out of paper >&2; exit 7; fi; exec sleep 60";
    let begin = Instant::now();
    let (code, _, stderr) = launch(&folder(), "--nproc-per-node 3", script);
    assert_eq!(code, 7);
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(stderr.contains("[rank 1] out of paper"), "{stderr}");
    let report = "rank 1 failed first (exit status: 7); its last output:\n  out of paper";
    assert!(stderr.contains(report), "{stderr}");
}

#[test]
fn rank_killed_by_a_signal_gives_exit_code_128_plus_the_signal() {
    let script = "if [ $RANK = 0 ]; then kill -9 $$; fi; exec sleep 60";
    let (code, _, stderr) = launch(&folder(), "--nproc-per-node 2", script);
    assert_eq!(code, 128 + 9);
    assert!(stderr.contains("rank 0 failed first (signal: 9"), "{stderr}");
}

#[test]
fn rank_that_ignores_sigterm_is_killed_within_ten_seconds() {
    // Rank 1 fails only after rank 0 has started to ignore the signal.
    let script = "if [ $RANK = 1 ]; then until [ -e $DIR/ready ]; do sleep 0.01; done; exit 3; fi; \
                  trap '' TERM; touch $DIR/ready; while :; do sleep 1; done";
    let begin = Instant::now();
    let folder = folder();
    let (code, ..) = launch(&folder, "--nproc-per-node 2", script);
    let elapsed = begin.elapsed();
    assert_eq!(code, 3);
    assert!((Duration::from_secs(5)..Duration::from_secs(10)).contains(&elapsed), "{elapsed:?}");
}

#[test]
fn on_sigterm_or_ctrl_c_all_ranks_save_and_end() {
    for name in ["-TERM", "-INT"] {
        let folder = folder();
        let (mut launcher, pids) = two_waiting_ranks(&folder);
        signal(launcher.id(), name);
        assert_eq!(launcher.wait().unwrap().code(), Some(0), "{name} ends the job successfully");
        assert_eq!(saved(&folder).len(), 2);
        assert!(!pids.into_iter().any(is_alive));
    }
}

#[test]
fn second_signal_kills_ranks_that_do_not_end() {
    let script = "trap '' TERM; echo $$ >> $DIR/pids; while :; do sleep 0.05; done";
    let folder = folder();
    let mut launcher = launcher(&folder, "--nproc-per-node 2", script).spawn().unwrap();
    let path = folder.path().join("pids");
    wait_until("ranks start", || lines(&path).len() == 2);
    signal(launcher.id(), "-INT");
    // A second signal at the same time, as batch systems send it, is the same request.
    signal(launcher.id(), "-TERM");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(launcher.try_wait().unwrap(), None, "the first signal waits for the ranks");
    signal(launcher.id(), "-INT");
    assert_eq!(launcher.wait().unwrap().code(), Some(130));
    assert!(!lines(&path).iter().any(|pid| is_alive(pid.parse().unwrap())));
}

#[test]
fn ranks_end_when_their_launcher_is_killed() {
    let folder = folder();
    let (mut launcher, pids) = two_waiting_ranks(&folder);
    signal(launcher.id(), "-KILL");
    launcher.wait().unwrap();
    wait_until("ranks end", || !pids.iter().any(|&pid| is_alive(pid)));
    assert_eq!(saved(&folder).len(), 2, "the ranks saved before they ended");
}

/// Script in which rank 1 fails at its first `$FAILURES` starts. It adds a line to the file
/// `starts` at every start.
const FAILS_AT_FIRST: &str = "if [ $RANK = 0 ]; then exec sleep 0.3; fi; \
    echo $TORCHELASTIC_RESTART_COUNT $MASTER_PORT >> $DIR/starts; \
    [ $(wc -l < $DIR/starts) -gt $FAILURES ] || exit 5";

#[test]
fn all_ranks_are_restarted_up_to_max_restarts_times() {
    for (restarts, code, starts) in [(2, 0, 3), (1, 5, 2)] {
        let folder = folder();
        let flags = format!("--nproc-per-node 2 --max-restarts {restarts}");
        let mut command = launcher(&folder, &flags, FAILS_AT_FIRST);
        let output = command.env("FAILURES", "2").output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        let started = lines(&folder.path().join("starts"));
        assert_eq!(started.len(), starts, "{stderr}");
        let counts = started.iter().map(|line| line.split_once(' ').unwrap().0);
        assert!(counts.eq((0..starts).map(|n| n.to_string())), "{started:?}");
        assert!(stderr.contains(&format!("restart {restarts} of {restarts}")), "{stderr}");
    }
}

#[test]
fn a_single_rank_is_restarted_too() {
    let script = "echo x >> $DIR/starts; [ $(wc -l < $DIR/starts) -gt 1 ] || kill -9 $$";
    let (code, _, stderr) = launch(&folder(), "--max-restarts 1", script);
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn usage_errors_are_not_retried() {
    let folder = folder();
    let script = "echo x >> $DIR/starts; exit 2";
    let (code, _, stderr) = launch(&folder, "--nproc-per-node 2 --max-restarts 5", script);
    assert_eq!(code, 2);
    assert!(lines(&folder.path().join("starts")).len() <= 2 && !stderr.contains("restart 1"));

    let missing = PathBuf::from("no/such/program");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let output = command.args(["launch", "--nproc-per-node", "2"]).arg(&missing).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no/such/program"));
}

#[test]
fn launcher_does_not_wait_for_processes_that_a_rank_left_behind() {
    // The grandchild keeps the pipe open. It is in the process group of the rank and ends with it.
    let script = "sleep 60 & echo $! >> $DIR/pids; exit 0";
    let folder = folder();
    let begin = Instant::now();
    let (code, ..) = launch(&folder, "--nproc-per-node 2", script);
    assert_eq!(code, 0);
    assert!(begin.elapsed() < Duration::from_secs(10));
    wait_until("grandchildren end", || {
        !lines(&folder.path().join("pids")).iter().any(|pid| is_alive(pid.parse().unwrap()))
    });
}

#[test]
fn ranks_continue_after_the_output_of_the_launcher_is_closed() {
    let script = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.02; done; echo $RANK >> $DIR/saved";
    let folder = folder();
    let mut child = launcher(&folder, "--nproc-per-node 2", script).spawn().unwrap();
    let mut first = [0];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(saved(&folder).len(), 2);
}
