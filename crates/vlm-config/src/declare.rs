//! The macro `settings!`, which declares one part of the configuration: its struct, its defaults
//! and the properties of each field.

/// Declares a part of the configuration.
///
/// ```text
/// settings! {
///     /// What the part is for.
///     OptimConfig at "optim" under "Optimization" {
///         parts { }
///         /// What the setting does.
///         epochs: u64 = 4, shown("N").at_least(1.0).decides_numbers();
///     }
/// }
/// ```
/// `parts` lists fields that are themselves parts of the configuration, with their types.
macro_rules! settings {
    (
        $(#[doc = $part_doc:literal])*
        $name:ident at $path:literal under $heading:literal {
            parts { $( $(#[doc = $sub_doc:literal])* $sub:ident: $sub_type:ty ),* $(,)? }
            $(
                $(#[doc = $doc:literal])*
                $field:ident: $type:ty = $default:expr, $traits:expr;
            )*
        }
    ) => {
        $(#[doc = $part_doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        #[non_exhaustive]
        pub struct $name {
            $( $(#[doc = $sub_doc])* pub $sub: $sub_type, )*
            $( $(#[doc = $doc])* pub $field: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $sub: Default::default(), )* $( $field: $default, )* }
            }
        }

        impl $name {
            /// The settings of this part, one for each field.
            pub(crate) fn declared() -> Vec<crate::setting::Setting> {
                let defaults = Self::default();
                vec![$(
                    crate::setting::Setting::declare(
                        $path,
                        stringify!($field),
                        &[$($doc),*],
                        $heading,
                        <$type as crate::kind::SettingType>::KIND,
                        serde_json::to_value(&defaults.$field).unwrap_or_default(),
                        $traits,
                    ),
                )*]
            }
        }
    };
}

/// Declares settings for the fields of a struct of another crate.
macro_rules! settings_of {
    (
        $function:ident: $name:ty, at $path:literal under $heading:literal {
            $(
                $(#[doc = $doc:literal])*
                $field:ident: $type:ty, $traits:expr;
            )*
        }
    ) => {
        fn $function() -> Vec<crate::setting::Setting> {
            let defaults = <$name>::default();
            vec![$(
                crate::setting::Setting::declare(
                    $path,
                    stringify!($field),
                    &[$($doc),*],
                    $heading,
                    <$type as crate::kind::SettingType>::KIND,
                    serde_json::to_value::<$type>(defaults.$field).unwrap_or_default(),
                    $traits,
                ),
            )*]
        }
    };
}

pub(crate) use {settings, settings_of};
