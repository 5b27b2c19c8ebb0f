//! A camera that answers as it is told.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

/// How the camera answers a request.
#[derive(Clone)]
pub(crate) enum Answer {
    /// With a status, a content type, further header lines and a body.
    Http(u16, &'static str, String, Vec<u8>),
    /// With these bytes and the end of the connection.
    Raw(Vec<u8>),
    /// With a body that never ends, as fast as it is read.
    Endless,
    /// With a body of which one byte comes now and then.
    Drip,
}

type Rules = Arc<Mutex<Vec<(&'static str, Answer)>>>;

/// A camera that can be told what to answer.
pub(crate) struct Camera {
    pub(crate) port: u16,
    /// Answers to requests in which a text occurs; the others are answered properly.
    rules: Rules,
    pub(crate) requests: Arc<AtomicUsize>,
    /// Bytes of endless bodies that were sent.
    pub(crate) sent: Arc<AtomicUsize>,
}

impl Camera {
    pub(crate) async fn start() -> Self {
        Self::start_with("127.0.0.1", None).await
    }

    /// Listens on another address, or speaks TLS.
    pub(crate) async fn start_with(host: &str, tls: Option<ServerConfig>) -> Self {
        let listener = TcpListener::bind((host, 0)).await.unwrap();
        let camera = Self {
            port: listener.local_addr().unwrap().port(),
            rules: Rules::default(),
            requests: Arc::default(),
            sent: Arc::default(),
        };
        let tls = tls.map(|tls| TlsAcceptor::from(Arc::new(tls)));
        let (port, rules) = (camera.port, Arc::clone(&camera.rules));
        let (requests, sent) = (Arc::clone(&camera.requests), Arc::clone(&camera.sent));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (rules, requests, sent) = (Arc::clone(&rules), Arc::clone(&requests), Arc::clone(&sent));
                let tls = tls.clone();
                // A client that hangs up is no fault.
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => serve(tls.accept(stream).await.ok()?, port, &rules, &requests, &sent)
                            .await
                            .ok(),
                        None => serve(stream, port, &rules, &requests, &sent).await.ok(),
                    }
                });
            }
        });
        camera
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}/onvif/device_service", self.port)
    }

    /// Answers requests in which `what` occurs like this from now on.
    pub(crate) fn answer(&self, what: &'static str, answer: Answer) {
        self.rules.lock().insert(0, (what, answer));
    }

    /// Answers properly from now on.
    pub(crate) fn behave(&self) {
        self.rules.lock().clear();
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    port: u16,
    rules: &Rules,
    requests: &AtomicUsize,
    sent: &AtomicUsize,
) -> std::io::Result<()> {
    let request = read(&mut stream).await?;
    requests.fetch_add(1, Ordering::Relaxed);
    let rule = rules
        .lock()
        .iter()
        .find(|(what, _)| request.contains(what))
        .cloned();
    let answer = rule.map_or_else(|| proper(&request, port), |(_, answer)| answer);
    match answer {
        Answer::Http(status, content_type, headers, body) => {
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&body).await?;
        }
        Answer::Raw(bytes) => stream.write_all(&bytes).await?,
        Answer::Endless => {
            stream
                .write_all(
                    b"HTTP/1.1 200 OK\r\ncontent-type: image/jpeg\r\ntransfer-encoding: chunked\r\n\r\n",
                )
                .await?;
            let chunk = [b"400\r\n".as_slice(), &[0xFF; 0x400], b"\r\n"].concat();
            loop {
                stream.write_all(&chunk).await?;
                sent.fetch_add(0x400, Ordering::Relaxed);
            }
        }
        Answer::Drip => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
                .await?;
            loop {
                stream.write_all(b"x").await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    stream.shutdown().await
}

/// Reads a request of known length.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                (name.eq_ignore_ascii_case("content-length")).then(|| value.parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or_default() {
                return Ok(text);
            }
        }
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..count]);
    }
}

/// A SOAP envelope around a body.
pub(crate) fn envelope(body: &str) -> Answer {
    let envelope = format!(
        "<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"><s:Body>{body}</s:Body></s:Envelope>"
    );
    Answer::Http(200, "application/soap+xml", String::new(), envelope.into_bytes())
}

/// The smallest JPEG header that tells a size: 640 by 360.
pub(crate) const PICTURE: &[u8] = &[0xFF, 0xD8, 0xFF, 0xC0, 0, 17, 8, 1, 0x68, 2, 0x80, 3, 0xFF, 0xD9];

/// What a camera answers that means well.
fn proper(request: &str, port: u16) -> Answer {
    let base = format!("http://127.0.0.1:{port}");
    let service = |namespace: &str, path: &str| {
        format!("<Service><Namespace>{namespace}</Namespace><XAddr>{base}/{path}</XAddr></Service>")
    };
    let message = "<NotificationMessage><Topic>tns1:VideoSource/MotionAlarm</Topic><Message><Message><Data>\
        <SimpleItem Name=\"State\" Value=\"true\"/></Data></Message></Message></NotificationMessage>";
    if request.starts_with("GET ") {
        return Answer::Http(200, "image/jpeg", String::new(), PICTURE.to_vec());
    }
    let asks = |operation: &str| request.contains(&format!("<{operation} "));
    envelope(&match () {
        () if asks("GetServices") => format!(
            "<R>{}{}{}</R>",
            service("http://www.onvif.org/ver10/media/wsdl", "media"),
            service("http://www.onvif.org/ver20/ptz/wsdl", "ptz"),
            service("http://www.onvif.org/ver10/events/wsdl", "events"),
        ),
        () if asks("GetProfiles") => "<R><Profiles token=\"p\"><Name>n</Name></Profiles></R>".to_owned(),
        () if asks("GetSnapshotUri") => format!("<R><Uri>{base}/picture.jpg</Uri></R>"),
        () if asks("CreatePullPointSubscription") => {
            format!("<R><SubscriptionReference><Address>{base}/point</Address></SubscriptionReference></R>")
        }
        () if asks("PullMessages") => format!("<R>{message}</R>"),
        () => "<R/>".to_owned(),
    })
}
