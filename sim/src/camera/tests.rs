use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

async fn camera(user: Option<(&str, &str)>, accepted: Accepted) -> (Handle, CancellationToken) {
    let options = Options {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        host: None,
        seed: 1,
        user: user.map(|(name, password)| (name.to_owned(), password.to_owned())),
        accepted,
        clock_skew_millis: 0,
        motion_interval: Duration::from_secs(3600),
        size: (320, 180),
    };
    let line = Arc::new(Mutex::new(Line::new(1)));
    let (service, listener) = Service::bind(options, line).await.unwrap();
    let (handle, shutdown) = (service.handle(), CancellationToken::new());
    tokio::spawn(service.run(listener, shutdown.clone()));
    (handle, shutdown)
}

async fn http(address: SocketAddr, request: &str) -> (u16, Vec<u8>) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let status = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
    let body = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .unwrap()
        + 4;
    (status, answer.split_off(body))
}

async fn soap(handle: &Handle, service: &str, namespace: &str, operation: &str) -> (u16, String) {
    let name = operation.split([' ', '>', '/']).next().unwrap();
    let body = format!(
        "<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\"><s:Body><{name} xmlns=\"{namespace}\"{}</s:Body></s:Envelope>",
        operation.strip_prefix(name).unwrap()
    );
    let request = format!(
        "POST /onvif/{service} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let (status, body) = http(handle.address(), &request).await;
    (status, String::from_utf8(body).unwrap())
}

#[tokio::test]
async fn services_are_listed_without_a_password_and_nothing_else_is() {
    let (handle, _shutdown) = camera(Some(("admin", "secret")), Accepted::Both).await;
    let (status, body) = soap(&handle, "device_service", soap::DEVICE, "GetServices/>").await;
    assert_eq!(status, 200);
    assert!(body.contains(soap::PTZ), "{body}");
    let (status, _) = soap(&handle, "device_service", soap::DEVICE, "GetDeviceInformation/>").await;
    assert_eq!(status, 401);
    let (status, _) = http(
        handle.address(),
        "GET /snapshot.jpg HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn a_snapshot_is_a_jpeg_that_changes_with_the_head() {
    let (handle, _shutdown) = camera(None, Accepted::Both).await;
    let request = "GET /snapshot.jpg HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let (status, first) = http(handle.address(), request).await;
    assert_eq!((status, &first[..2]), (200, &[0xff, 0xd8][..]));
    let goto =
        "GotoPreset><ProfileToken>profile_1</ProfileToken><PresetToken>palletiser</PresetToken></GotoPreset>";
    let (status, _) = soap(&handle, "ptz_service", soap::PTZ, goto).await;
    assert_eq!(status, 200);
    assert_eq!(handle.position(), (0.8, -0.2, 0.5));
    let (_, second) = http(handle.address(), request).await;
    assert_ne!(first, second);
}

#[tokio::test]
async fn motion_reaches_a_pull_point_and_an_unknown_one_is_refused() {
    let (handle, _shutdown) = camera(None, Accepted::Both).await;
    let create = "CreatePullPointSubscription><InitialTerminationTime>PT60S</InitialTerminationTime></CreatePullPointSubscription>";
    let (status, body) = soap(&handle, "event_service", soap::EVENTS, create).await;
    assert_eq!(status, 200, "{body}");
    let pull = "PullMessages><Timeout>PT5S</Timeout><MessageLimit>10</MessageLimit></PullMessages>";
    let (_, body) = soap(&handle, "subscription/1", soap::EVENTS, pull).await;
    assert!(body.contains("PropertyOperation=\"Initialized\""), "{body}");
    handle.move_something();
    let (_, body) = soap(&handle, "subscription/1", soap::EVENTS, pull).await;
    assert!(body.contains("Name=\"State\" Value=\"true\""), "{body}");
    let (status, body) = soap(&handle, "subscription/9", soap::EVENTS, pull).await;
    assert_eq!(status, 400, "{body}");
}

#[tokio::test]
async fn malformed_requests_get_a_fault() {
    let (handle, _shutdown) = camera(None, Accepted::Both).await;
    for body in ["", "<a>", "not xml", &"<a>".repeat(100)] {
        let request = format!(
            "POST /onvif/device_service HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, _) = http(handle.address(), &request).await;
        assert_eq!(status, 400, "{body}");
    }
}
