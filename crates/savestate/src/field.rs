//! Types that fields may have, and how they are written.

use crate::decode::{DecodeError, Decoder};

/// A type with one encoding for each of its values.
pub trait Field: Sized {
    /// Fewest bytes of a value; never 0, so that a count of them is bounded by the bytes that are there.
    const LEAST: usize;

    /// Appends the value.
    fn encode(&self, out: &mut Vec<u8>);

    /// Takes the value. Total: anything else is an error.
    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError>;
}

impl Decoder<'_> {
    /// The next field.
    pub fn field<T: Field>(&mut self) -> Result<T, DecodeError> {
        T::decode(self)
    }
}

macro_rules! integer {
    ($($type:ty),*) => {$(
        impl Field for $type {
            const LEAST: usize = size_of::<$type>();

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }

            fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                from.array().map(Self::from_le_bytes)
            }
        }
    )*};
}

integer!(u8, u16, u32, u64, i64);

impl Field for bool {
    const LEAST: usize = 1;

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        match from.field::<u8>()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(from.bad_value("0 and 1")),
        }
    }
}

impl<T: Field> Field for Option<T> {
    const LEAST: usize = 1;

    fn encode(&self, out: &mut Vec<u8>) {
        self.is_some().encode(out);
        if let Some(value) = self {
            value.encode(out);
        }
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        from.field::<bool>()?.then(|| from.field()).transpose()
    }
}

fn encode_count(count: usize, out: &mut Vec<u8>) {
    // No state comes near to 4 GiB; one that did would be refused when it is loaded, not taken for another.
    u32::try_from(count).unwrap_or(u32::MAX).encode(out);
}

impl<T: Field> Field for Vec<T> {
    const LEAST: usize = 4;

    fn encode(&self, out: &mut Vec<u8>) {
        encode_count(self.len(), out);
        self.iter().for_each(|element| element.encode(out));
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let count = from.count(T::LEAST)?;
        (0..count).map(|_| from.field()).collect()
    }
}

impl<T: Field, const N: usize> Field for [T; N] {
    const LEAST: usize = T::LEAST * N;

    fn encode(&self, out: &mut Vec<u8>) {
        self.iter().for_each(|element| element.encode(out));
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let elements = (0..N).map(|_| from.field()).collect::<Result<Vec<T>, _>>()?;
        // There are N of them.
        elements.try_into().map_err(|_| from.bad_value("an array's elements"))
    }
}

/// Many bytes: as `Vec<u8>`, taken at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Field for Bytes {
    const LEAST: usize = 4;

    fn encode(&self, out: &mut Vec<u8>) {
        encode_count(self.0.len(), out);
        out.extend(&self.0);
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let count = from.count(1)?;
        from.bytes(count).map(|bytes| Self(bytes.to_vec()))
    }
}

impl Field for String {
    const LEAST: usize = 4;

    fn encode(&self, out: &mut Vec<u8>) {
        encode_count(self.len(), out);
        out.extend(self.as_bytes());
    }

    fn decode(from: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let Bytes(bytes) = from.field()?;
        Self::from_utf8(bytes).map_err(|_| from.bad_value("the bytes of UTF-8"))
    }
}

/// Declares a struct that can be a field of a section: its fields, in their order, are its encoding for ever.
#[macro_export]
macro_rules! record {
    ($(#[$outer:meta])* $visible:vis struct $name:ident {
        $($(#[$inner:meta])* $field_visible:vis $field:ident: $type:ty,)+
    }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        $visible struct $name {
            $($(#[$inner])* $field_visible $field: $type,)+
        }

        impl $crate::Field for $name {
            const LEAST: usize = 0 $(+ <$type as $crate::Field>::LEAST)+;

            fn encode(&self, out: &mut Vec<u8>) {
                $($crate::Field::encode(&self.$field, out);)+
            }

            fn decode(from: &mut $crate::Decoder<'_>) -> Result<Self, $crate::DecodeError> {
                Ok(Self { $($field: from.field()?,)+ })
            }
        }
    };
}

/// Declares the struct of a section, as [`record!`], with its kind and version. `after OLDER { |older| … }` names the struct of
/// the version before, and makes this one from it; a first version has none.
#[macro_export]
macro_rules! section {
    ($(#[$outer:meta])* $visible:vis struct $name:ident = $kind:literal, version 1 { $($body:tt)+ }) => {
        $crate::section!(@make [$(#[$outer])*] [$visible] $name, $kind, 1, $crate::Never, |older| match older {}, { $($body)+ });
    };
    ($(#[$outer:meta])* $visible:vis struct $name:ident = $kind:literal, version $version:literal
        after $older:ty { |$before:ident| $upgrade:expr } { $($body:tt)+ }) => {
        $crate::section!(@make [$(#[$outer])*] [$visible] $name, $kind, $version, $older, |$before| $upgrade, { $($body)+ });
    };
    (@make [$(#[$outer:meta])*] [$visible:vis] $name:ident, $kind:literal, $version:literal, $older:ty,
        |$before:ident| $upgrade:expr, { $($body:tt)+ }) => {
        $crate::record! { $(#[$outer])* $visible struct $name { $($body)+ } }

        impl $crate::Schema for $name {
            const KIND: &'static str = $kind;
            const VERSION: u32 = $version;
        }

        impl $crate::SaveState for $name {
            type Older = $older;

            fn upgrade($before: $older) -> Self {
                $upgrade
            }
        }
    };
}
