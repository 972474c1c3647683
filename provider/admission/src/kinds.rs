//! What is the same of all kinds of objects that this crate defines: of the cluster, in `kvmlet.io/v1alpha1`, with a field `metadata`.

/// The group of all kinds.
pub(crate) const GROUP: &str = "kvmlet.io";
/// Its version.
pub(crate) const VERSION: &str = "v1alpha1";

/// Makes a type with a field `metadata` such a kind.
macro_rules! of_the_cluster {
    ($kind:ident, $plural:literal) => {
        impl kube::Resource for $kind {
            type DynamicType = ();
            type Scope = kube::core::ClusterResourceScope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                stringify!($kind).into()
            }

            fn group((): &()) -> std::borrow::Cow<'_, str> {
                $crate::kinds::GROUP.into()
            }

            fn version((): &()) -> std::borrow::Cow<'_, str> {
                $crate::kinds::VERSION.into()
            }

            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

pub(crate) use of_the_cluster;
