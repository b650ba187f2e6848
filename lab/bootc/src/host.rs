//! The `host-v1` document, as upstream's `docs/src/host-v1.schema.json` has it:
//! the part that an ostree system can fill. Field names and the set of values
//! are upstream's; what does not exist here (composefs, soft reboot) is left out
//! or at its default.

use serde::Serialize;

pub const API_VERSION: &str = "org.containers.bootc/v1";
pub const KIND: &str = "BootcHost";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    pub api_version: &'static str,
    pub kind: &'static str,
    pub metadata: Metadata,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Serialize)]
pub struct Metadata {
    pub name: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    pub image: Option<ImageReference>,
    pub boot_order: BootOrder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BootOrder {
    Default,
    Rollback,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub staged: Option<BootEntry>,
    pub booted: Option<BootEntry>,
    pub rollback: Option<BootEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub other_deployments: Vec<BootEntry>,
    pub rollback_queued: bool,
    #[serde(rename = "type")]
    pub host_type: Option<HostType>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HostType {
    BootcHost,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BootEntry {
    pub image: Option<ImageStatus>,
    pub cached_update: Option<ImageStatus>,
    pub incompatible: bool,
    pub pinned: bool,
    pub store: Option<Store>,
    pub ostree: Option<Ostree>,
}

#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Store {
    OstreeContainer,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageStatus {
    pub image: ImageReference,
    pub version: Option<String>,
    /// RFC 3339, as the image's configuration has it.
    pub timestamp: Option<String>,
    /// Of the manifest, `sha256:...`.
    pub image_digest: String,
    pub architecture: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct ImageReference {
    pub image: String,
    pub transport: String,
    pub signature: Option<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Signature {
    OstreeRemote(String),
    ContainerPolicy,
    Insecure,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ostree {
    pub stateroot: String,
    /// Of the deployed commit, 64 hex digits.
    pub checksum: String,
    pub deploy_serial: i32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, to_value};

    #[test]
    fn signature_as_upstream_spells_it() {
        for (have, want) in [
            (Signature::ContainerPolicy, json!("containerPolicy")),
            (Signature::Insecure, json!("insecure")),
            (
                Signature::OstreeRemote("x".into()),
                json!({"ostreeRemote": "x"}),
            ),
        ] {
            assert_eq!(to_value(have).unwrap(), want);
        }
    }

    #[test]
    fn a_host_that_is_not_managed_has_nulls() {
        let have = to_value(Status::default()).unwrap();
        let want = json!({"staged": null, "booted": null, "rollback": null, "rollbackQueued": false, "type": null});
        assert_eq!(have, want);
    }
}
