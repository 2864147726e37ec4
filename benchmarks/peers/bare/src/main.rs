//! What a server costs at least: HTTP, JSON and ONNX Runtime on one thread, nothing else.
//!
//! `bare PORT MODEL`: answers `POST` with `{"instances": [image, …]}` by `{"predictions": [[…], …]}`. Requests
//! that have arrived together are one batch. Several processes share the port (SO_REUSEPORT), one a core.
//! Nothing is checked, limited or counted: this is the limit that the endpoint is compared with, not a peer.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use ort::session::Session;
use ort::value::Tensor;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

const LISTENER: Token = Token(0);
const SIDE: usize = 28;

#[derive(Deserialize)]
struct Request {
    instances: Vec<Vec<Vec<u8>>>,
}

#[derive(Serialize)]
struct Answer<'a> {
    predictions: Vec<&'a [f32]>,
}

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
}

/// The length of a whole request and where its body begins, once all of it has arrived.
fn whole(received: &[u8]) -> Option<(usize, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(begin) = request.parse(received).ok()? else {
        return None;
    };
    let length = request
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok())
        .unwrap_or(0);
    (received.len() >= begin + length).then_some((begin, begin + length))
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.listen(256)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// Reads what has arrived; false when the peer has closed.
fn receive(connection: &mut Connection) -> bool {
    let mut buffer = [0u8; 16384];
    loop {
        match connection.stream.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => connection.received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
    }
}

/// Answers one batch: (connection, number of images) in the order of the pixels.
fn answer(
    session: &mut Session,
    pixels: Vec<u8>,
    asked: &[(Token, usize)],
    connections: &mut HashMap<Token, Connection>,
) {
    let count = pixels.len() / (SIDE * SIDE);
    let images = Tensor::from_array(([count, SIDE, SIDE, 1], pixels)).expect("a tensor");
    let outputs = session.run(ort::inputs![images]).expect("a prediction");
    let (shape, values) = outputs[0].try_extract_tensor::<f32>().expect("float32");
    let width = shape[1] as usize;
    let mut rows = values.chunks(width);
    for (token, images) in asked {
        let predictions = rows.by_ref().take(*images).collect();
        let body = serde_json::to_vec(&Answer { predictions }).expect("JSON");
        let Some(connection) = connections.get_mut(token) else { continue };
        let mut response = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        response.extend_from_slice(&body);
        let _ = connection.stream.write_all(&response);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let (port, model) = (arguments[1].parse()?, &arguments[2]);
    let mut session = Session::builder()?.with_intra_threads(1)?.commit_from_file(model)?;
    let mut listener = listen(port)?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let (mut events, mut connections, mut next) = (Events::with_capacity(256), HashMap::new(), 1);
    loop {
        poll.poll(&mut events, None)?;
        let (mut pixels, mut asked) = (Vec::new(), Vec::new());
        for event in events.iter() {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    let token = Token(next);
                    next += 1;
                    poll.registry().register(&mut stream, token, Interest::READABLE)?;
                    connections.insert(token, Connection { stream, received: Vec::new() });
                }
                continue;
            }
            let Some(connection) = connections.get_mut(&event.token()) else { continue };
            if !receive(connection) {
                connections.remove(&event.token());
                continue;
            }
            if let Some((begin, end)) = whole(&connection.received) {
                let request: Request = serde_json::from_slice(&connection.received[begin..end])?;
                asked.push((event.token(), request.instances.len()));
                pixels.extend(request.instances.iter().flatten().flatten());
                connection.received.drain(..end);
            }
        }
        if !asked.is_empty() {
            answer(&mut session, pixels, &asked, &mut connections);
        }
    }
}
