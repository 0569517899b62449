//! A trial on two "machines": network namespaces of their own, joined by one cable that is pulled
//! in the middle of a run. Needs root and iproute2: `cargo xtask test -- --ignored two_machines`.

use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::launching::{assert_same_run, last_step, launched, undisturbed, wait_until};
use crate::support::Trial;

const TIMEOUT_SECS: &str = "8";
/// The same, with a step that had begun and the end of the processes on a busy machine.
const REPORTED_WITHIN: Duration = Duration::from_secs(8 + 1);

/// Two namespaces, `10.77.0.1` and `10.77.0.2`; gone when dropped.
struct Machines {
    names: [String; 2],
}

impl Machines {
    fn new() -> Self {
        let id = std::process::id() % 10_000;
        let names = [format!("vlm{id}a"), format!("vlm{id}b")];
        let [a, b] = &names;
        let machines = Self { names: names.clone() };
        ip(&["netns", "add", a]);
        ip(&["netns", "add", b]);
        ip(&["link", "add", a, "netns", a, "type", "veth", "peer", "name", b, "netns", b]);
        for (name, address) in [(a, "10.77.0.1/24"), (b, "10.77.0.2/24")] {
            ip(&["-n", name, "addr", "add", address, "dev", name]);
            ip(&["-n", name, "link", "set", name, "up"]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
        }
        machines
    }

    /// The launcher of one machine, its log in `machine{rank}.log`.
    fn launch(&self, rank: usize, trial: &Trial, more: &[&str]) -> Child {
        let rank_text = rank.to_string();
        let flags = ["--nnodes", "2", "--node-rank", &rank_text, "--master-addr", "10.77.0.1"];
        let flags = [&flags[..], &["--max-restarts", "20"]].concat();
        let launcher = launched(trial, &flags, more);
        let log = fs::File::create(trial.path(&format!("machine{rank}.log"))).unwrap();
        Command::new("ip")
            .args(["netns", "exec", &self.names[rank]])
            .arg(launcher.get_program())
            .args(launcher.get_args())
            .stdout(std::process::Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn cable(&self, state: &str) {
        ip(&["-n", &self.names[0], "link", "set", &self.names[0], state]);
    }
}

impl Drop for Machines {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().expect("ip of iproute2");
    assert!(status.success(), "ip {args:?}: {status}; root is needed");
}

/// Ends a launcher, and with it its ranks, when a check fails.
struct Launcher(Child);

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root, and takes a minute or two"]
fn run_on_two_machines_outlives_a_pulled_cable() {
    let more = ["--epochs", "150", "--timeout-secs", TIMEOUT_SECS];
    let machines = Machines::new();
    let trial = Trial::new();
    let mut launchers = [0, 1].map(|rank| Launcher(machines.launch(rank, &trial, &more)));
    let log = |rank: usize| {
        fs::read_to_string(trial.path(&format!("machine{rank}.log"))).unwrap_or_default()
    };
    wait_until("step 20", Duration::from_secs(120), || last_step(&trial) >= 20);

    machines.cable("down");
    let cut = Instant::now();
    let mut reported = [None; 2];
    wait_until("both machines' reports", Duration::from_secs(60), || {
        for (rank, reported) in reported.iter_mut().enumerate() {
            if reported.is_none() && log(rank).contains("failed first") {
                *reported = Some(cut.elapsed());
            }
        }
        reported.iter().all(Option::is_some)
    });
    println!("cut at step {}; reported after {reported:?}", last_step(&trial));
    for (rank, reported) in reported.iter().flatten().enumerate() {
        assert!(*reported <= REPORTED_WITHIN, "machine {rank}: {reported:?}\n{}", log(rank));
    }
    std::thread::sleep(Duration::from_secs(15));
    machines.cable("up");
    let back = Instant::now();
    let stood = last_step(&trial);
    wait_until("progress", Duration::from_secs(120), || last_step(&trial) > stood);
    println!("went on {:?} after the cable was back", back.elapsed());
    for (rank, launcher) in launchers.iter_mut().enumerate() {
        let status = launcher.0.wait().unwrap();
        assert!(status.success(), "machine {rank}: {status}\n{}", log(rank));
        println!("machine {rank} restarted {} times", log(rank).matches("restart ").count());
    }
    assert_same_run(&undisturbed(&more), &trial);
}
