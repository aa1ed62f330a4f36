//! Gives a network namespace of the host a user-mode network: this machine's own kernel is the guest.
//!
//! ```text
//! unshare --net sleep 1000 &
//! cargo run --release -p posada-network --example nat_for_linux -- $! iperf3 -c 10.0.2.2
//! ```
//!
//! Opens a tap (so it needs CAP_NET_ADMIN), moves it to the namespace of the process, gives it the guest's addresses,
//! joins it to a user-mode network, and runs a command in the namespace.

use std::process::{Command, ExitCode};

use posada_network::limit::Rates;
use posada_network::link::{Capacity, pair};
use posada_network::nat::{Config, Nat};
use posada_network::tap::Tap;

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let process = arguments.next().ok_or("which process's namespace?")?;
    let command: Vec<String> = arguments.collect();
    let (interface, network) = pair(Capacity::default())?;
    let _nat = Nat::start(Config::default(), network)?;
    let _tap = Tap::start("posadatap", Rates::default(), interface)?;
    run("ip", &["link", "set", "posadatap", "netns", &process])?;
    let inside = ["-t", process.as_str(), "-n"];
    for line in [
        "ip link set lo up",
        "ip addr add 10.0.2.15/24 dev posadatap",
        "ip link set posadatap up",
        "ip route add default via 10.0.2.2",
    ] {
        let words: Vec<&str> = inside.iter().copied().chain(line.split(' ')).collect();
        run("nsenter", &words)?;
    }
    let status = Command::new("nsenter").args(inside).args(&command).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(program: &str, arguments: &[&str]) -> Result<(), Box<dyn std::error::Error>> {
    let status = Command::new(program).args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(format!("{program} {arguments:?} failed").into()) }
}
