//! A run on two "machines": network namespaces that are connected by a virtual cable, which is cut
//! during the run. Needs root and iproute2: `cargo xtask test -- --ignored two_machines`.

use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::launching::{assert_same_run, last_step, launched, uninterrupted, wait_until};
use crate::support::Trial;

const TIMEOUT_SECS: &str = "8";
/// The timeout plus time for a step that had started and for ending the processes.
const REPORTED_WITHIN: Duration = Duration::from_secs(8 + 1);

/// Two namespaces with the addresses `10.77.0.1` and `10.77.0.2`. They are removed on drop.
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

    /// Starts the launcher of a machine, with its log in `machine{rank}.log`.
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

    /// Sets the state of the cable, `up` or `down`.
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
    let status = Command::new("ip").args(args).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {args:?}: {status}; are you root?");
}

/// A launcher that is killed on drop, together with its ranks.
struct Launcher(Child);

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root and takes two minutes"]
fn run_on_two_machines_continues_after_a_network_failure() {
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
    wait_until("reports of both machines", Duration::from_secs(60), || {
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
    let step = last_step(&trial);
    wait_until("progress", Duration::from_secs(120), || last_step(&trial) > step);
    println!("continued {:?} after the network was restored", back.elapsed());
    for (rank, launcher) in launchers.iter_mut().enumerate() {
        let status = launcher.0.wait().unwrap();
        assert!(status.success(), "machine {rank}: {status}\n{}", log(rank));
        println!("machine {rank} restarted {} times", log(rank).matches("restart ").count());
    }
    assert_same_run(&uninterrupted(&more), &trial);
}
