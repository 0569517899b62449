//! `vlm board`: serves the page about training runs.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use clap::Args;
use tiny_http::{Header, Method, Request, Response, Server};
use vlm_board::Board;

use crate::error::CliError;

/// Number of requests that are answered at the same time: a browser that reads slowly does not stop
/// the others.
const NUM_THREADS: usize = 4;

/// Flags of `vlm board`.
#[derive(Debug, Args)]
pub struct BoardArgs {
    /// Folders of runs (--out-dir), or folders that hold several of them.
    #[arg(value_name = "OUT_DIR", required = true)]
    pub out_dirs: Vec<PathBuf>,
    /// Address to listen on: 127.0.0.1 is reached from this machine only, 0.0.0.0 from every
    /// machine that reaches this one.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 6007)]
    pub port: u16,
}

/// Runs the command, which ends with Ctrl-C.
pub fn run(args: &BoardArgs) -> Result<()> {
    let board = Mutex::new(Board::open(&args.out_dirs).map_err(CliError::Usage)?);
    let address = SocketAddr::new(args.host, args.port);
    let server = Server::http(address).map_err(|error| {
        CliError::Usage(format!("{address}: {error}; choose another --port (0 takes a free one)"))
    })?;
    let address = server.server_addr().to_ip().unwrap_or(address);
    println!("http://{address} shows the runs while they are trained; Ctrl-C ends the board");
    std::thread::scope(|scope| {
        for _ in 0..NUM_THREADS {
            scope.spawn(|| {
                // An error of one connection does not end the board.
                while let Ok(request) = server.recv() {
                    let response = answer(&board, &request, address);
                    let _ = request.respond(response);
                }
            });
        }
    });
    Ok(())
}

fn answer(
    board: &Mutex<Board>,
    request: &Request,
    address: SocketAddr,
) -> Response<std::io::Cursor<Vec<u8>>> {
    let plain = |status: u16, text: &str| Response::from_string(text).with_status_code(status);
    // A web page of another site must not read the runs through a name that leads to this machine.
    let host = request.headers().iter().find(|header| header.field.equiv("Host"));
    if address.ip().is_loopback()
        && !host.is_some_and(|host| is_of_this_machine(host.value.as_str()))
    {
        return plain(403, "open the board by the address that it printed\n");
    }
    if *request.method() != Method::Get {
        return plain(405, "the board answers GET requests only\n");
    }
    let found = board.lock().unwrap_or_else(PoisonError::into_inner).respond(request.url());
    let response = Response::from_data(found.body).with_status_code(found.status);
    match Header::from_bytes("Content-Type", found.content_type) {
        Ok(header) => response.with_header(header),
        Err(()) => response,
    }
}

fn is_of_this_machine(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    ["localhost", "[::1]"].contains(&name) || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}
