//! Fills the status document from the ostree sysroot that this system booted.

use std::collections::VecDeque;

use anyhow::{Context, Result};
use ostree_ext::container::deploy::ORIGIN_CONTAINER;
use ostree_ext::container::store::{query_image_commit, LayeredImageState};
use ostree_ext::container::{version_for_config, OstreeImageReference, SignatureSource, Transport};
use ostree_ext::keyfileext::KeyFileExt;
use ostree_ext::oci_spec::image::{Digest, ImageConfiguration};
use ostree_ext::ostree::{gio, Deployment, Repo, Sysroot};

use crate::host::*;

/// What initramfs leaves on a system that booted an ostree deployment.
const BOOTED_MARK: &str = "/run/ostree-booted";

/// Origin groups that rpm-ostree writes when packages are layered on the image;
/// bootc then refuses to manage the deployment.
const LAYERED: [&str; 2] = ["packages", "overrides"];

/// Prints the document, one line of JSON.
pub fn print() -> Result<()> {
    let host = read()?;
    println!("{}", serde_json::to_string(&host)?);
    Ok(())
}

fn read() -> Result<Host> {
    let (image, boot_order, status) = if std::path::Path::new(BOOTED_MARK).exists() {
        let sysroot = Sysroot::new_default();
        sysroot
            .load(gio::Cancellable::NONE)
            .context("loading the sysroot")?;
        status(&sysroot)?
    } else {
        (None, BootOrder::Default, Status::default())
    };
    Ok(Host {
        api_version: API_VERSION,
        kind: KIND,
        metadata: Metadata { name: "host" },
        spec: Spec { image, boot_order },
        status,
    })
}

/// Sorts the deployments as upstream does: those of the booted stateroot are
/// staged, booted and rollback (the first of the others); the rest is "other".
fn status(sysroot: &Sysroot) -> Result<(Option<ImageReference>, BootOrder, Status)> {
    let repo = sysroot.repo();
    let booted = sysroot.booted_deployment();
    let stateroot = booted.as_ref().map(|b| b.osname());

    let (mut related, other): (VecDeque<_>, Vec<_>) = {
        let (related, other): (Vec<_>, Vec<_>) = sysroot
            .deployments()
            .into_iter()
            .partition(|d| Some(d.osname()) == stateroot);
        (related.into(), other)
    };
    let staged = related
        .iter()
        .position(|d| d.is_staged())
        .and_then(|i| related.remove(i));
    if let Some(booted) = &booted {
        related.retain(|d| !d.equal(booted));
    }
    let rollback = related.pop_front();
    let rollback_queued = match (&booted, &rollback) {
        (Some(booted), Some(rollback)) => rollback.index() < booted.index(),
        _ => false,
    };
    let boot_order = if rollback_queued {
        BootOrder::Rollback
    } else {
        BootOrder::Default
    };

    let entry = |d: &Deployment| entry(&repo, d);
    let status = Status {
        staged: staged.as_ref().map(entry).transpose()?,
        booted: booted.as_ref().map(entry).transpose()?,
        rollback: rollback.as_ref().map(entry).transpose()?,
        other_deployments: related
            .iter()
            .chain(&other)
            .map(entry)
            .collect::<Result<_>>()?,
        rollback_queued,
        host_type: booted.as_ref().map(|_| HostType::BootcHost),
    };
    // The specification is what the next boot will run.
    let image = status
        .staged
        .as_ref()
        .or(status.booted.as_ref())
        .and_then(|e| e.image.as_ref())
        .map(|i| i.image.clone());
    Ok((image, boot_order, status))
}

fn entry(repo: &Repo, deployment: &Deployment) -> Result<BootEntry> {
    let checksum = deployment.csum().to_string();
    let origin = deployment.origin();
    let reference = origin
        .as_ref()
        .map(|o| o.optional_string("origin", ORIGIN_CONTAINER))
        .transpose()
        .context("reading an origin")?
        .flatten()
        .map(|s| OstreeImageReference::try_from(s.as_str()))
        .transpose()
        .context("parsing an origin")?;
    let incompatible = origin.is_some_and(|o| {
        o.groups()
            .iter()
            .any(|group| LAYERED.contains(&group.as_str()))
    });

    let (mut image, mut cached_update) = (None, None);
    if let Some(reference) = reference {
        let state = query_image_commit(repo, &checksum)
            .with_context(|| format!("reading the image of commit {checksum}"))?;
        let LayeredImageState {
            manifest_digest,
            configuration,
            cached_update: cached,
            ..
        } = *state;
        image = Some(image_status(&reference, &manifest_digest, &configuration));
        cached_update = cached.map(|c| image_status(&reference, &c.manifest_digest, &c.config));
    }
    Ok(BootEntry {
        store: image.as_ref().map(|_| Store::OstreeContainer),
        image,
        cached_update,
        incompatible,
        pinned: deployment.is_pinned(),
        ostree: Some(Ostree {
            stateroot: deployment.osname().into(),
            checksum,
            deploy_serial: deployment.deployserial(),
        }),
    })
}

fn image_status(
    reference: &OstreeImageReference,
    digest: &Digest,
    config: &ImageConfiguration,
) -> ImageStatus {
    ImageStatus {
        image: image_reference(reference),
        version: version_for_config(config).map(String::from),
        timestamp: config.created().clone(),
        image_digest: digest.to_string(),
        architecture: config.architecture().to_string(),
    }
}

fn image_reference(reference: &OstreeImageReference) -> ImageReference {
    let transport = match reference.imgref.transport {
        // ostree-ext prints `docker://` here; the document says `registry`.
        Transport::Registry => "registry".to_string(),
        other => other.to_string().trim_end_matches(':').to_string(),
    };
    let signature = match &reference.sigverify {
        SignatureSource::OstreeRemote(name) => Signature::OstreeRemote(name.clone()),
        SignatureSource::ContainerPolicy => Signature::ContainerPolicy,
        SignatureSource::ContainerPolicyAllowInsecure => Signature::Insecure,
    };
    ImageReference {
        image: reference.imgref.name.clone(),
        transport,
        signature: Some(signature),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (origin, image, transport, signature) in [
            (
                "ostree-image-signed:docker://example.org/a/b:44",
                "example.org/a/b:44",
                "registry",
                Signature::ContainerPolicy,
            ),
            (
                "ostree-unverified-registry:example.org/a:1",
                "example.org/a:1",
                "registry",
                Signature::Insecure,
            ),
            (
                "ostree-remote-image:x:registry:example.org/a:1",
                "example.org/a:1",
                "registry",
                Signature::OstreeRemote("x".into()),
            ),
            (
                "ostree-unverified-image:oci:/var/a",
                "/var/a",
                "oci",
                Signature::Insecure,
            ),
        ] {
            let have = image_reference(&OstreeImageReference::try_from(origin).unwrap());
            assert_eq!(
                (
                    have.image.as_str(),
                    have.transport.as_str(),
                    have.signature.unwrap()
                ),
                (image, transport, signature),
                "{origin}"
            );
        }
    }
}
