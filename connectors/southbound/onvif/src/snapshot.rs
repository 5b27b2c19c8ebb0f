//! Pictures: fetched from the camera's own JPEG address, one task a stream.

use std::{borrow::Cow, sync::Arc, time::Duration};

use foreshore_connector_sdk::{Closed, Health, Member, Observation, Picture};
use foreshore_crds::v1alpha1::asset::Stream;
use jiff::Timestamp;
use tokio::time::MissedTickBehavior;

use crate::{
    client::{Error, Lockout},
    shared::Shared,
};

/// Fetches pictures of one stream until dropped.
pub(crate) async fn run(shared: Arc<Shared>, member: Member, stream: Stream) {
    let Member::Stream { asset, stream: name } = member.clone() else {
        return;
    };
    let settings = stream.snapshot.clone().unwrap_or_default();
    let mut ticks = tokio::time::interval(settings.effective_interval().max(Duration::from_millis(50)));
    // A slow camera is asked when it is ready, not in bursts.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut address, mut lockout) = (None, Lockout::default());
    loop {
        ticks.tick().await;
        match fetch(&shared, &stream, &mut address).await {
            Ok(picture) => {
                let picture = Picture {
                    asset: Arc::clone(&asset),
                    stream: Arc::clone(&name),
                    ..picture
                };
                if let Err(Closed) = shared.out.emit(Observation::Picture(picture)).await {
                    return;
                }
                shared.out.health(&member, Health::healthy());
                lockout = Lockout::default();
            }
            Err(error) => {
                // The address may have changed with a restart.
                address = None;
                shared.out.health(&member, health_of(&error));
                lockout.wait_after(&error).await;
            }
        }
    }
}

fn health_of(error: &Error) -> Health {
    let health = Health::unhealthy(error.reason(), error.to_string());
    health.with_next_step(match error {
        Error::Refused => {
            "check user name, password and rights; a camera that knows only HTTP Basic needs usernameTokenFallback"
        }
        _ => "look whether the camera shows pictures in a browser, and whether the profile exists",
    })
}

async fn fetch(
    shared: &Shared,
    stream: &Stream,
    address: &mut Option<reqwest::Url>,
) -> Result<Picture, Error> {
    let token = stream
        .onvif
        .as_ref()
        .and_then(|onvif| onvif.profile_token.as_ref())
        .map(|token| token.as_str());
    let profile = shared.camera.profile(token, false).ok_or_else(|| {
        let known: Vec<&str> = shared
            .camera
            .profiles
            .iter()
            .map(|profile| profile.token.as_str())
            .collect();
        Error::Protocol(format!(
            "no media profile {:?}; the camera has: {}",
            token.unwrap_or("first"),
            known.join(", ")
        ))
    })?;
    let url = match address.clone() {
        Some(url) => url,
        None => {
            shared
                .camera
                .snapshot_address(&shared.client, &profile.token)
                .await?
        }
    };
    let limits = shared.settings.snapshots.clone().unwrap_or_default();
    let wanted = stream
        .snapshot
        .as_ref()
        .and_then(|snapshot| snapshot.max_size.as_ref())
        .map(|size| size.get());
    let limit = wanted.unwrap_or(u64::MAX).min(limits.effective_max_size());
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    // The picture was taken between question and answer; the answer is nearer.
    let (image, media_type) = shared
        .client
        .picture(&url, limits.effective_timeout(), limit)
        .await?;
    let captured_at = Timestamp::now();
    *address = Some(url);
    let size = size_of(media_type, &image);
    Ok(Picture {
        asset: "".into(),
        stream: "".into(),
        image,
        media_type: Cow::Borrowed(media_type),
        captured_at,
        width: size.map(|(width, _)| width),
        height: size.map(|(_, height)| height),
    })
}

/// Width and height of a picture, from its own header.
fn size_of(media_type: &str, image: &[u8]) -> Option<(u32, u32)> {
    let four = |at: usize| {
        image
            .get(at..at + 4)
            .and_then(|four| <[u8; 4]>::try_from(four).ok())
    };
    match media_type {
        "image/jpeg" => jpeg_size(image),
        // The first chunk is the header (PNG, 11.2.2).
        "image/png" => Some((
            four(16).map(u32::from_be_bytes)?,
            four(20).map(u32::from_be_bytes)?,
        )),
        // A negative height means that the first line is the topmost one (BITMAPINFOHEADER).
        "image/bmp" => {
            let (width, height) = (
                four(18).map(i32::from_le_bytes)?,
                four(22).map(i32::from_le_bytes)?,
            );
            Some((width.unsigned_abs(), height.unsigned_abs()))
        }
        _ => None,
    }
}

/// Width and height from a JPEG's frame header (ITU-T T.81, B.2.2).
fn jpeg_size(image: &[u8]) -> Option<(u32, u32)> {
    let mut rest = image.strip_prefix(&[0xFF, 0xD8])?;
    loop {
        let [0xFF, marker, after @ ..] = rest else {
            return None;
        };
        if *marker == 0xFF {
            // Fill bytes.
            rest = rest.get(1..)?;
            continue;
        }
        let length = usize::from(u16::from_be_bytes([*after.first()?, *after.get(1)?]));
        if matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC) {
            let dimension = |at: usize| {
                Some(u32::from(u16::from_be_bytes([
                    *after.get(at)?,
                    *after.get(at + 1)?,
                ])))
            };
            return Some((dimension(5)?, dimension(3)?));
        }
        rest = after.get(length.max(2)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_size_is_read_past_other_segments() {
        let mut image = vec![
            0xFF, 0xD8, 0xFF, 0xE0, 0, 4, 1, 2, 0xFF, 0xC0, 0, 17, 8, 1, 0x68, 2, 0x80, 3,
        ];
        assert_eq!(jpeg_size(&image), Some((640, 360)));
        image.truncate(12);
        assert_eq!(jpeg_size(&image), None);
        assert_eq!(jpeg_size(b"BM"), None);
        assert_eq!(jpeg_size(&[0xFF, 0xD8, 0xFF, 0xE0, 0, 0]), None);
    }

    #[test]
    fn other_pictures_tell_their_size_too() {
        let mut png = *b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x02\x80\0\0\x01\x68";
        assert_eq!(size_of("image/png", &png), Some((640, 360)));
        assert_eq!(size_of("image/png", &png[..22]), None);
        png[19] = 0;
        assert_eq!(size_of("image/png", &png), Some((512, 360)));
        let mut bitmap = [0; 26];
        bitmap[18..22].copy_from_slice(&640_i32.to_le_bytes());
        bitmap[22..26].copy_from_slice(&(-360_i32).to_le_bytes());
        assert_eq!(size_of("image/bmp", &bitmap), Some((640, 360)));
    }

    proptest! {
        #[test]
        fn no_picture_panics(
            kind in prop_oneof![Just("image/jpeg"), Just("image/png"), Just("image/bmp")],
            start in prop_oneof![Just(vec![]), Just(vec![0xFF, 0xD8, 0xFF]), Just(vec![0xFF, 0xD8, 0xFF, 0xFF, 0xE0, 0, 0])],
            rest in proptest::collection::vec(prop_oneof![Just(0xFF_u8), Just(0xC0), Just(0), any::<u8>()], 0..64),
        ) {
            let _size = size_of(kind, &[start, rest].concat());
        }
    }
}
