//! `foreshore broker explain`: whether a client may do something, and why.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, Result, bail};
use foreshore_broker::policy::explain::{Explanation, Question, Request, explain};
use foreshore_operator::{Platform, RoleName, check, source::directory::Options as ManifestOptions};
use foreshore_record::{Qos, TopicFilter, TopicName};

use super::{
    super::{Refused, status::Form, table::harmless},
    inspect::{Target, words},
};
use crate::admin::About;

/// Prefix of shared subscriptions (MQTT 5.0 section 4.8.2).
const SHARED: &str = "$share/";

/// Who wants to do what, and whom to ask.
#[derive(clap::Args)]
pub(super) struct Options {
    /// Manifests to judge by: files or folders. Where none is given, the broker that runs is asked.
    paths: Vec<PathBuf>,
    /// Client identifier.
    #[arg(long, value_name = "ID")]
    client: String,
    /// User name, as the listener's authentication finds it; none for an anonymous client.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// A group of the user; may be given several times.
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// A fact of the client's certificate, such as CN=pump; may be given several times.
    #[arg(long, value_name = "FACT=VALUE", value_parser = parse_fact)]
    certificate: Vec<(String, String)>,
    /// An attribute of the user, such as site=north; may be given several times.
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = parse_fact)]
    attributes: Vec<(String, String)>,
    #[command(flatten)]
    wanted: Wanted,
    /// Quality of service of what it publishes.
    #[arg(long, default_value_t = 0, requires = "publish", value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// It publishes a message that is to be retained.
    #[arg(long, requires = "publish")]
    retain: bool,
    /// Folder of secrets: files NAME/KEY of mode 0600.
    #[arg(long, value_name = "DIR", requires = "paths")]
    secrets: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    form: Form,
}

/// What the client wants to do.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Wanted {
    /// It connects.
    #[arg(long)]
    connect: bool,
    /// It publishes to a topic.
    #[arg(long, value_name = "TOPIC")]
    publish: Option<String>,
    /// It subscribes to a filter.
    #[arg(long, value_name = "FILTER")]
    subscribe: Option<String>,
}

fn parse_fact(text: &str) -> Result<(String, String), String> {
    let (fact, value) = text
        .split_once('=')
        .ok_or_else(|| format!("found {text:?}, NAME=VALUE is allowed"))?;
    Ok((fact.to_owned(), value.to_owned()))
}

impl Options {
    fn question(&self) -> Result<Question> {
        let mut certificate = BTreeMap::<_, Vec<_>>::new();
        for (fact, value) in &self.certificate {
            certificate.entry(fact.clone()).or_default().push(value.clone());
        }
        Ok(Question {
            client_id: self.client.clone(),
            username: self.user.clone(),
            groups: self.groups.clone(),
            certificate,
            attributes: self.attributes.iter().cloned().collect(),
            request: self.request()?,
        })
    }

    fn request(&self) -> Result<Request> {
        let Wanted {
            connect: _,
            publish,
            subscribe,
        } = &self.wanted;
        if let Some(topic) = publish {
            return Ok(Request::Publish {
                topic: TopicName::new(topic).with_context(|| format!("--publish: found {topic:?}"))?,
                qos: Qos::try_from(self.qos).context("--qos")?,
                retain: self.retain,
            });
        }
        let Some(filter) = subscribe else {
            return Ok(Request::Connect);
        };
        // A shared subscription is judged by its filter.
        let judged = match filter.strip_prefix(SHARED) {
            Some(shared) => match shared.split_once('/') {
                Some((_, filter)) => filter,
                None => bail!("--subscribe: found {filter:?}, allowed is $share/GROUP/FILTER"),
            },
            None => filter,
        };
        let filter = TopicFilter::new(judged).with_context(|| format!("--subscribe: found {filter:?}"))?;
        Ok(Request::Subscribe { filter })
    }
}

/// Asks and prints; ends with [`Refused`] where it is not allowed.
pub(super) async fn run(options: Options) -> Result<()> {
    let question = options.question()?;
    if options.paths.is_empty() {
        let answer = options.target.ask(About::Explain(question)).await?;
        if options.form.is_text() {
            print!("{}", words(&answer));
        } else {
            println!("{answer:#}");
        }
        return judge(answer["allowed"] == true);
    }
    let explanation = from_manifests(&options, question)?;
    if options.form.is_text() {
        for line in explanation.to_string().lines() {
            println!("{}", harmless(line));
        }
    } else {
        println!("{}", serde_json::to_string_pretty(&explanation)?);
    }
    judge(explanation.allowed)
}

fn judge(allowed: bool) -> Result<()> {
    if allowed { Ok(()) } else { Err(Refused.into()) }
}

fn from_manifests(options: &Options, question: Question) -> Result<Explanation> {
    let manifests = ManifestOptions {
        paths: options.paths.clone(),
        secrets: options.secrets.clone(),
        ..ManifestOptions::default()
    };
    let (policies, report) = check::policies(manifests, Platform::standalone()).context("manifests")?;
    if !report.is_right() {
        let problems = report.problems.len();
        eprintln!("{problems} problems: what is wrong does not count; `foreshore check` names it");
    }
    let name = |role: &RoleName| format!("{}/{}", role.namespace, role.name);
    let wanted = options.target.broker.as_deref();
    let mut found = policies
        .iter()
        .filter(|(role, _)| wanted.is_none_or(|wanted| name(role) == wanted));
    let (Some((_, policies)), None) = (found.next(), found.next()) else {
        if policies.is_empty() {
            bail!("no Broker is declared in these manifests");
        }
        let names: Vec<_> = policies.keys().map(name).collect();
        let found = wanted.unwrap_or("none");
        bail!("--broker: found {found}, allowed is one of {}", names.join(", "));
    };
    let policies = policies.iter().map(|(name, spec)| (name.as_str(), spec));
    explain(policies, question).context("policies")
}
