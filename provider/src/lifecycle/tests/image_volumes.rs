//! Volumes that are images, step by step, without a machine.

use super::*;

fn with_volumes() -> Life {
    let mount = json!({"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let volume = json!({"name": "v", "image": {"reference": "r"}});
    Life::new(json!({"containers": [mount, {"name": "b", "image": "i"}], "volumes": [volume]}))
}

impl Life {
    fn volume_pulled(&mut self, result: Result<ImageFacts, PullFailure>) -> Vec<Action> {
        self.on(Event::VolumePulled { volume: 0, result })
    }
}

#[test]
fn a_machine_is_made_once_the_images_of_volumes_are_here_too_and_has_them() {
    let mut life = with_volumes();
    assert_eq!(life.on(Event::Tick), [Action::Pull(0), Action::Pull(1), Action::PullVolume(0)]);
    life.pulled(0, Ok(facts()));
    assert_eq!(life.pulled(1, Ok(facts())), []);
    let image = ImageFacts {
        id: "sha256:v".into(),
        ..facts()
    };
    assert_eq!(life.volume_pulled(Ok(image)), [Action::StartMachine]);
    assert_eq!(life.state.device_images(), ["sha256:2", "sha256:v"]);
}

#[test]
fn who_mounts_an_image_that_cannot_be_had_says_so_and_it_is_tried_again() {
    let mut life = with_volumes();
    life.on(Event::Tick);
    life.pulled(0, Ok(facts()));
    life.pulled(1, Ok(facts()));
    assert_eq!(life.volume_pulled(Err(failed_pull())), []);
    assert_eq!(
        (life.reason(0).as_str(), life.reason(1).as_str()),
        ("ErrImagePull", "ContainerCreating")
    );
    life.pass(2);
    assert_eq!(life.reason(0), "ImagePullBackOff");
    assert_eq!(life.pass(8), [Action::PullVolume(0)]);
    assert_eq!(life.volume_pulled(Ok(facts())), [Action::StartMachine]);
}
