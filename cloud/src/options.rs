//! How a cloud endpoint is set up.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use foreshore_edgelink::limits::{MAX_BATCH_BYTES, PART_BYTES};
use foreshore_tls::ServerName;
use jiff::Timestamp;

/// Shortest token, in bytes: shorter ones can be guessed.
const MIN_TOKEN_LEN: usize = 16;

/// Longest name of who holds a token of the JSON API, in bytes.
const MAX_HOLDER_LEN: usize = 128;

/// Shortest life of an edge's certificate.
const MIN_LIFETIME: Duration = Duration::from_secs(2);

/// How a cloud endpoint is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace of the Cloud object; part of every certificate that it issues.
    pub namespace: String,
    /// Name of the Cloud object.
    pub name: String,
    /// Directory of the database and of the authority; made when it does not exist.
    pub data_directory: PathBuf,
    /// Where edges connect.
    pub edge_link: ListenOptions,
    /// Where the JSON API answers.
    pub http: HttpOptions,
    /// Tokens that admit edges, each one edge. Can be changed while it runs.
    pub join_tokens: Vec<JoinToken>,
    /// Bearer tokens of the JSON API. Can be changed while it runs.
    pub api_tokens: Vec<ApiToken>,
    /// Life of an edge's certificate. Default: 7 days.
    pub certificate_lifetime: Duration,
    /// How long after its end a certificate may still renew. Default: 90 days.
    pub renewal_grace: Duration,
    /// How much is kept.
    pub history: HistoryOptions,
    /// Commands.
    pub commands: CommandOptions,
    /// Bounds of links.
    pub link: LinkOptions,
}

/// Where to listen.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Address; the port that was taken is told by the handle when port 0 is asked for.
    pub address: SocketAddr,
    /// Certificate to show; where it is `None`, the own authority issues one.
    pub tls: Option<TlsFiles>,
    /// Host names and addresses of a certificate that the own authority issues, besides the address.
    pub host_names: Vec<String>,
}

/// Where the JSON API answers.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Address; the port that was taken is told by the handle when port 0 is asked for.
    pub address: SocketAddr,
    /// Certificate to show; where it is `None`, the API is not encrypted, and the address must be of loopback.
    pub tls: Option<TlsFiles>,
    /// Whether the API may be reached without encryption from other machines.
    pub allow_plain: bool,
}

/// A certificate with its chain, and its key, as a `kubernetes.io/tls` Secret holds them.
#[derive(Clone)]
pub struct TlsFiles {
    /// Certificates in PEM, leaf first.
    pub certificate: Vec<u8>,
    /// Private key in PEM.
    pub key: Vec<u8>,
}

impl fmt::Debug for TlsFiles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("TlsFiles").finish_non_exhaustive()
    }
}

/// A secret text. Its `Debug` output does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Secret({} bytes)", self.0.len())
    }
}

/// A bearer token of the JSON API.
#[derive(Clone, Debug)]
pub struct ApiToken {
    /// Whose it is: the actor in the audit.
    pub name: String,
    /// The token.
    pub token: Secret,
    /// Whether its holder says itself, in the header `foreshore-actor`, for whom it asks: for programs of ours that have
    /// made sure who that is.
    pub speaks_for_others: bool,
}

/// A token that admits one edge, and the key that it shows first.
#[derive(Clone, Debug)]
pub struct JoinToken {
    /// Name of the edge.
    pub edge: String,
    /// The token.
    pub token: Secret,
    /// After this time it admits nobody; never where it is `None`.
    pub expires_at: Option<Timestamp>,
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct HistoryOptions {
    /// Age of values. Default: 30 days.
    pub max_age: Duration,
    /// Bytes of the database, beyond which the oldest values go. Default: without bound.
    pub max_bytes: Option<u64>,
    /// Bytes that the database never exceeds: beyond it nothing is taken, and edges wait. Default: without bound.
    pub limit_bytes: Option<u64>,
    /// Time between two passes of deletion. Default: 1 minute.
    pub interval: Duration,
}

impl Default for HistoryOptions {
    fn default() -> Self {
        Self {
            max_age: Duration::from_secs(30 * 24 * 3600),
            max_bytes: None,
            limit_bytes: None,
            interval: Duration::from_secs(60),
        }
    }
}

/// Commands.
#[derive(Clone, Copy, Debug)]
pub struct CommandOptions {
    /// Deadline of a command that does not say its own. Default: 30 s.
    pub timeout: Duration,
    /// Longest deadline. Default: 10 minutes.
    pub max_timeout: Duration,
    /// How long the audit is kept. Default: a year.
    pub audit_max_age: Duration,
}

impl Default for CommandOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            max_timeout: Duration::from_secs(600),
            audit_max_age: Duration::from_secs(365 * 24 * 3600),
        }
    }
}

/// Bounds of links.
#[derive(Clone, Copy, Debug)]
pub struct LinkOptions {
    /// Most bytes of a batch before compression; at most 16 MiB. Default: 4 MiB.
    pub max_batch_bytes: usize,
    /// Most bytes of topic, properties and payload of a record; larger ones are refused. Default: 3 MiB.
    pub max_record_bytes: usize,
    /// Bytes that a lane of an edge may have on the way and uncommitted, before it waits. Default: 1 MiB.
    pub lane_credit: u64,
    /// Bytes of batches, before compression, of all edges that are held in memory. Default: 128 MiB.
    pub buffered_bytes: usize,
    /// Silence after which a link counts as broken. Default: 30 s.
    pub keep_alive: Duration,
    /// Connections at a time. Default: 4,096.
    pub max_connections: usize,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            max_batch_bytes: 4 << 20,
            max_record_bytes: 3 << 20,
            lane_credit: 1 << 20,
            buffered_bytes: 128 << 20,
            keep_alive: Duration::from_secs(30),
            max_connections: 4096,
        }
    }
}

/// Options that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: found {found}, {allowed}")]
pub struct InvalidOption {
    /// Which option.
    pub field: String,
    /// What it is; never a secret.
    pub found: String,
    /// What is allowed.
    pub allowed: &'static str,
}

impl Options {
    /// Options on free ports of loopback with one token, of `api`, and defaults for the rest.
    pub fn new(data_directory: impl Into<PathBuf>, api_token: Secret) -> Self {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        Self {
            namespace: "default".to_owned(),
            name: "cloud".to_owned(),
            data_directory: data_directory.into(),
            edge_link: ListenOptions {
                address,
                tls: None,
                host_names: Vec::new(),
            },
            http: HttpOptions {
                address,
                tls: None,
                allow_plain: false,
            },
            join_tokens: Vec::new(),
            api_tokens: vec![ApiToken {
                name: "api".to_owned(),
                token: api_token,
                speaks_for_others: false,
            }],
            certificate_lifetime: Duration::from_secs(7 * 24 * 3600),
            renewal_grace: Duration::from_secs(90 * 24 * 3600),
            history: HistoryOptions::default(),
            commands: CommandOptions::default(),
            link: LinkOptions::default(),
        }
    }

    /// Judges the options.
    pub(crate) fn validate(&self) -> Result<(), InvalidOption> {
        let invalid = |field: &str, found: String, allowed| InvalidOption {
            field: field.to_owned(),
            found,
            allowed,
        };
        let plain = self.http.tls.is_none() && !self.http.allow_plain;
        if plain && !self.http.address.ip().is_loopback() {
            let allowed = "without a certificate only a loopback address is allowed";
            return Err(invalid("http.address", self.http.address.to_string(), allowed));
        }
        self.api_tokens.iter().try_for_each(ApiToken::validate)?;
        if self.certificate_lifetime < MIN_LIFETIME {
            let found = format!("{:?}", self.certificate_lifetime);
            return Err(invalid(
                "certificates.lifetime",
                found,
                "at least 2 s are allowed",
            ));
        }
        let LinkOptions {
            max_batch_bytes,
            max_record_bytes,
            buffered_bytes,
            ..
        } = self.link;
        if max_batch_bytes > MAX_BATCH_BYTES
            || max_record_bytes > max_batch_bytes
            || max_batch_bytes > buffered_bytes
        {
            let found = format!(
                "record {max_record_bytes}, batch {max_batch_bytes}, buffered {buffered_bytes} bytes"
            );
            return Err(invalid(
                "link",
                found,
                "record <= batch <= buffered, and batch <= 16 MiB are allowed",
            ));
        }
        if self.link.lane_credit < PART_BYTES as u64 {
            let found = format!("{} bytes", self.link.lane_credit);
            return Err(invalid(
                "link.laneCredit",
                found,
                "at least a part of 32 KiB is allowed",
            ));
        }
        self.join_tokens.iter().try_for_each(JoinToken::validate)
    }
}

impl ApiToken {
    pub(crate) fn validate(&self) -> Result<(), InvalidOption> {
        check_token(&format!("api token of {:?}", self.name), &self.token)?;
        // No slash: at the edge the name of the endpoint stands before one.
        let allowed = |character: char| character.is_ascii_alphanumeric() || ".-_".contains(character);
        if (1..=MAX_HOLDER_LEN).contains(&self.name.len()) && self.name.chars().all(allowed) {
            return Ok(());
        }
        Err(InvalidOption {
            field: "api token".to_owned(),
            found: format!("{:?}", self.name),
            allowed: "1 to 128 letters, digits, '.', '-' and '_' are allowed as the name of who holds it",
        })
    }
}

impl JoinToken {
    pub(crate) fn validate(&self) -> Result<(), InvalidOption> {
        check_token(&format!("join token of edge {:?}", self.edge), &self.token)?;
        let identity = foreshore_tls::RoleIdentity::new(foreshore_tls::Role::Edge, "n", &self.edge, "u");
        identity.map(drop).map_err(|_| InvalidOption {
            field: "join token".to_owned(),
            found: format!("edge {:?}", self.edge),
            allowed: "1 to 253 letters, digits, '.', '-' and '_' are allowed as the name of an edge",
        })
    }
}

impl ListenOptions {
    /// Names that the own authority writes into the certificate.
    pub(crate) fn server_names(&self, bound: SocketAddr) -> Result<Vec<ServerName<'static>>, InvalidOption> {
        let mut names = Vec::new();
        if !bound.ip().is_unspecified() {
            names.push(ServerName::from(bound.ip()));
        }
        if bound.ip().is_loopback() || self.host_names.is_empty() {
            names.extend(ServerName::try_from("localhost".to_owned()));
        }
        for found in &self.host_names {
            names.push(ServerName::try_from(found.clone()).map_err(|_| InvalidOption {
                field: "edgeLink.hostNames".to_owned(),
                found: format!("{found:?}"),
                allowed: "host names and addresses are allowed",
            })?);
        }
        Ok(names)
    }
}

fn check_token(field: &str, token: &Secret) -> Result<(), InvalidOption> {
    let found = token.expose().len();
    if (MIN_TOKEN_LEN..=4096).contains(&found) {
        return Ok(());
    }
    Err(InvalidOption {
        field: field.to_owned(),
        found: format!("{found} bytes"),
        allowed: "16 to 4096 bytes are allowed",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options::new("/nowhere", Secret::new("0123456789abcdef"))
    }

    #[test]
    fn what_can_not_be_used_is_named_and_secrets_are_not_shown() {
        assert_eq!(options().validate(), Ok(()));
        let error = |change: fn(&mut Options)| {
            let mut options = options();
            change(&mut options);
            options.validate().unwrap_err().to_string()
        };
        let public = error(|options| options.http.address = "0.0.0.0:80".parse().unwrap());
        assert_eq!(
            public,
            "http.address: found 0.0.0.0:80, without a certificate only a loopback address is allowed"
        );
        let short = error(|options| options.api_tokens[0].token = Secret::new("short"));
        assert_eq!(
            short,
            "api token of \"api\": found 5 bytes, 16 to 4096 bytes are allowed"
        );
        let holder = error(|options| options.api_tokens[0].name = "a/b".to_owned());
        assert!(
            holder.starts_with("api token: found \"a/b\", 1 to 128"),
            "{holder}"
        );
        let name = error(|options| {
            let token = Secret::new("0123456789abcdef");
            options.join_tokens = vec![JoinToken {
                edge: "a/b".to_owned(),
                token,
                expires_at: None,
            }];
        });
        assert!(name.starts_with("join token: found edge \"a/b\""), "{name}");
        assert!(
            error(|options| options.link.max_record_bytes = 5 << 20)
                .starts_with("link: found record 5242880")
        );
        assert!(!format!("{:?}", options()).contains("0123456789abcdef"));
    }

    #[test]
    fn the_certificate_is_for_where_it_listens() {
        let names = |address: &str, host_names: &[&str]| {
            let host_names = host_names.iter().map(|&name| name.to_owned()).collect();
            let address = address.parse().unwrap();
            let names = ListenOptions {
                address,
                tls: None,
                host_names,
            }
            .server_names(address)?;
            Ok::<_, InvalidOption>(
                names
                    .iter()
                    .map(|name| name.to_str().into_owned())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(names("127.0.0.1:1", &[]).unwrap(), ["127.0.0.1", "localhost"]);
        assert_eq!(
            names("0.0.0.0:1", &["cloud.plant", "10.0.0.1"]).unwrap(),
            ["cloud.plant", "10.0.0.1"]
        );
        assert!(names("0.0.0.0:1", &["not a name"]).is_err());
    }
}
