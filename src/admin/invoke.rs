//! A command to an asset, through the JSON API of a cloud endpoint that runs here.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Answer;
use crate::roles::Directory;

/// Longest wait for an answer beyond a command's own time.
const PATIENCE: Duration = Duration::from_secs(15);

/// A command to an asset.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Invocation {
    /// Namespace of the asset.
    pub(crate) namespace: String,
    /// Name of the asset.
    pub(crate) asset: String,
    /// Action group.
    pub(crate) group: String,
    /// Action.
    pub(crate) action: String,
    /// Input.
    pub(crate) input: Value,
    /// Seconds until the deadline.
    pub(crate) timeout_seconds: u64,
    /// Key under which a repeat is recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idempotency_key: Option<String>,
    /// For whom it is asked, where the operating system does not know it: whoever may forward a port to a pod says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) user: Option<String>,
}

impl Invocation {
    /// Passes it on; `user` is who asks, as far as that is known for sure.
    pub(super) async fn run(self, directory: &Directory, user: Option<String>) -> Answer {
        let Self {
            namespace,
            asset,
            group,
            action,
            input,
            timeout_seconds,
            idempotency_key,
            user: claimed,
        } = self;
        let clouds = directory.clouds();
        let cloud = clouds
            .first()
            .ok_or("no cloud endpoint runs here: declare a Cloud, or publish the command over MQTT")?;
        let mut url = reqwest::Url::parse(&cloud.url).map_err(|error| error.to_string())?;
        let path = ["api", "assets", &namespace, &asset, "commands", &group, &action];
        url.path_segments_mut()
            .map_err(|()| format!("{} has no path", cloud.url))?
            .extend(path);
        let client = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(timeout_seconds) + PATIENCE)
            .build()
            .map_err(|error| error.to_string())?;
        let mut body = json!({ "input": input, "timeout": timeout_seconds });
        if let Some(key) = idempotency_key {
            body["idempotencyKey"] = key.into();
        }
        let claimed = claimed.as_deref().filter(|name| is_header(name));
        let actor = user.unwrap_or_else(|| format!("kubectl:{}", claimed.unwrap_or("unknown")));
        let response = client
            .post(url)
            .bearer_auth(&cloud.token)
            .header("foreshore-actor", actor)
            .json(&body)
            .send()
            .await;
        let response = response.map_err(|error| format!("cloud endpoint: {error}"))?;
        let status = response.status();
        let body = response.json().await;
        let body: Value = body.map_err(|error| format!("cloud endpoint: {error}"))?;
        if status.is_success() {
            Ok(body)
        } else {
            Err(failure(&body))
        }
    }
}

/// Whether a name can travel in a header of HTTP.
fn is_header(name: &str) -> bool {
    (1..=256).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Problem details (RFC 9457) as one line for people.
fn failure(problem: &Value) -> String {
    let text = |member: &str| problem.get(member).and_then(Value::as_str);
    let mut line = format!(
        "{}: {}",
        text("code").unwrap_or("Failed"),
        text("detail").unwrap_or("the cloud endpoint does not say why")
    );
    for (member, words) in [("deviceStatus", "device status"), ("id", "command")] {
        if let Some(value) = text(member) {
            line.push_str(&format!("; {words} {value}"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_one_line() {
        let problem =
            json!({ "code": "DeviceFailed", "detail": "no", "deviceStatus": "BadOutOfRange", "id": "7" });
        assert_eq!(
            failure(&problem),
            "DeviceFailed: no; device status BadOutOfRange; command 7"
        );
    }
}
