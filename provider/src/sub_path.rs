//! Which part of a volume a container's mount shows. Pure.

use std::{cell::RefCell, collections::BTreeSet};

use k8s_openapi::api::core::v1::VolumeMount;

use crate::{env::Env, expand::expand};

/// The part of its volume that a mount shows, relative to it: `subPath`, or `subPathExpr` with the container's own variables in it (the kubelet's makeMounts and
/// ExpandContainerVolumeMounts, and their words).
pub fn sub_path(mount: &VolumeMount, env: &Env) -> Result<String, String> {
    let path = match mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
        None => mount.sub_path.clone().unwrap_or_default(),
        Some(expression) => {
            let missing = RefCell::new(BTreeSet::new());
            let expanded = expand(expression, &|name| {
                let value = env.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
                if value.as_ref().is_none_or(String::is_empty) {
                    missing.borrow_mut().insert(name.to_owned());
                }
                value
            });
            let missing: Vec<String> = missing.into_inner().into_iter().collect();
            if !missing.is_empty() {
                return Err(format!("missing value for {}", missing.join(", ")));
            }
            expanded
        }
    };
    if path.starts_with('/') {
        return Err(format!("error SubPath `{path}` must not be an absolute path"));
    }
    if path.split('/').any(|part| part == "..") {
        return Err(format!("unable to provision SubPath `{path}`: must not contain '..'"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_sub_path_is_what_the_pod_writes_or_its_expression_says() {
        let of = |mount: Value| {
            let mount = serde_json::from_value(mount).unwrap();
            let env = [("NAME", "web-0"), ("EMPTY", ""), ("UP", ".."), ("ROOT", "/etc")];
            sub_path(&mount, &env.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec())
        };
        let expression = |text: &str| of(json!({"name": "v", "mountPath": "/v", "subPathExpr": text}));
        let plain = |text: &str| of(json!({"name": "v", "mountPath": "/v", "subPath": text}));
        assert_eq!(of(json!({"name": "v", "mountPath": "/v"})).as_deref(), Ok(""));
        assert_eq!(plain("$(NAME)/a").as_deref(), Ok("$(NAME)/a"));
        assert_eq!(expression("logs/$(NAME)/$$(NAME)").as_deref(), Ok("logs/web-0/$(NAME)"));
        for (text, words) in [
            ("$(ZERO)/$(EMPTY)", "missing value for EMPTY, ZERO"),
            ("$(ROOT)/x", "error SubPath `/etc/x` must not be an absolute path"),
            ("a/$(UP)/b", "unable to provision SubPath `a/../b`: must not contain '..'"),
        ] {
            assert_eq!(expression(text).unwrap_err(), words, "{text}");
        }
        assert!(plain("a/../b").is_err() && plain("/a").is_err() && plain("a..b").is_ok());
    }
}
