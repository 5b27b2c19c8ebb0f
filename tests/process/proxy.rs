//! A network between two processes that can swallow everything, or be slow.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Carries connections to a port. Its threads end with their connections.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    conditions: Arc<Conditions>,
}

#[derive(Default)]
struct Conditions {
    /// Bytes get in and none get out; nobody is told.
    swallows: AtomicBool,
    /// Most bytes in a second of each connection; 0 for no bound.
    pace: AtomicU64,
}

impl Proxy {
    pub(crate) fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let conditions = Arc::new(Conditions::default());
        let shared = Arc::clone(&conditions);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let conditions = Arc::clone(&shared);
                thread::spawn(move || {
                    // As a network would: the server does not hear of those whose packets are lost.
                    while conditions.swallows.load(Ordering::Relaxed) {
                        thread::sleep(Duration::from_millis(50));
                    }
                    let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
                        return;
                    };
                    let (Ok(from_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else {
                        return;
                    };
                    let up = Arc::clone(&conditions);
                    thread::spawn(move || carry(from_client, to_server, &up));
                    carry(server, client, &conditions);
                });
            }
        });
        Self { port, conditions }
    }

    /// From now on nothing gets through, in either direction, and nothing is said about it.
    pub(crate) fn swallow(&self, swallows: bool) {
        self.conditions.swallows.store(swallows, Ordering::Relaxed);
    }

    /// At most so many bytes a second get through in each direction; 0 for no bound.
    pub(crate) fn pace(&self, bytes: u64) {
        self.conditions.pace.store(bytes, Ordering::Relaxed);
    }
}

/// Carries one direction of a connection. What was swallowed is lost to it, so it ends when the network works again.
fn carry(mut from: TcpStream, mut to: TcpStream, conditions: &Conditions) {
    let mut buffer = [0; 16 * 1024];
    let mut lost = false;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if conditions.swallows.load(Ordering::Relaxed) {
            lost = true;
            continue;
        }
        if lost || to.write_all(&buffer[..count]).is_err() {
            break;
        }
        let pace = conditions.pace.load(Ordering::Relaxed);
        if pace > 0 {
            thread::sleep(Duration::from_secs_f64(count as f64 / pace as f64));
        }
    }
    // The other direction may have closed it.
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}
