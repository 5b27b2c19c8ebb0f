//! Asking services of others over HTTPS, with bounds.

use std::time::Duration;

use foreshore_tls::{Credentials, TrustBundle};
use reqwest::{Certificate, Client, Identity, RequestBuilder, StatusCode, Url};

/// Reads an address.
///
/// # Errors
/// When it is no `https` URL.
pub(super) fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok();
    url.filter(|url| url.scheme() == "https" && url.has_host())
        .ok_or_else(|| format!("found {text:?}, an https URL is allowed"))
}

/// Makes a client that believes the given authorities, or those of the system, and shows the given certificate. It follows
/// no redirection: what is believed is what answers at the address that somebody wrote down.
///
/// # Errors
/// When the authorities or the certificate can't be used.
pub(super) fn client(
    authorities: Option<&TrustBundle>,
    credentials: Option<&Credentials>,
    timeout: Duration,
) -> Result<Client, String> {
    foreshore_tls::install_provider();
    let mut builder = Client::builder()
        .https_only(true)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(timeout)
        .user_agent("foreshore");
    if let Some(bundle) = authorities {
        let roots = bundle.roots().iter().map(|root| Certificate::from_der(root));
        let roots = roots
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| told(&error))?;
        builder = builder.tls_certs_only(roots);
    }
    if let Some(credentials) = credentials {
        let identity = Identity::from_pem(credentials.to_pem().as_bytes()).map_err(|error| told(&error))?;
        builder = builder.identity(identity);
    }
    builder.build().map_err(|error| told(&error))
}

/// Sends a request, and reads an answer of at most `max` bytes.
///
/// # Errors
/// When none comes, or it is longer.
pub(super) async fn ask(request: RequestBuilder, max: usize) -> Result<(StatusCode, Vec<u8>), String> {
    let mut answer = request.send().await.map_err(|error| told(&error))?;
    let status = answer.status();
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| told(&error))? {
        if body.len() + chunk.len() > max {
            return Err(format!("the answer is longer than {max} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((status, body))
}

/// An error with its causes, which tell what is wrong: `reqwest` only says what it did.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
