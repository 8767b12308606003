//! A message's own fields are counted before anything is made of them: an empty entry has two bytes on the wire and a
//! hundred and more in memory, so that a message of a permitted size could take a gigabyte. What is inside of an entry
//! is not counted.

use std::marker::PhantomData;

use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// The most fields of one message, each entry of a list being one. Pages have 500, command lines some thousands.
const MOST_FIELDS: usize = 131_072;

/// The codec of both services.
#[derive(Debug, Clone)]
pub struct CountedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for CountedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for CountedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = CountedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        CountedDecoder(ProstCodec::<T, U>::raw_decoder(BufferSettings::default()))
    }
}

/// Refuses a message of too many fields.
#[derive(Debug, Clone)]
pub struct CountedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for CountedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if has_too_many_fields(prost::bytes::Buf::chunk(message)) {
            return Err(Status::out_of_range(format!(
                "a message has at most {MOST_FIELDS} fields"
            )));
        }
        self.0.decode(message)
    }
}

/// What cannot be read is left to the decoder, which refuses it.
fn has_too_many_fields(mut message: &[u8]) -> bool {
    let mut count = 0;
    while !message.is_empty() {
        count += 1;
        let Ok((tag, wire_type)) = decode_key(&mut message) else {
            return false;
        };
        if count > MOST_FIELDS {
            return true;
        }
        if skip_field(wire_type, tag, &mut message, DecodeContext::default()).is_err() {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::{ExecData, ExecList, ExecStatus, ListPage};

    #[test]
    fn a_message_of_very_many_nothings_is_refused() {
        let page = |entries| ListPage {
            entries: vec![Default::default(); entries],
            ..ListPage::default()
        };
        assert!(!has_too_many_fields(&page(MOST_FIELDS).encode_to_vec()));
        assert!(has_too_many_fields(&page(MOST_FIELDS + 1).encode_to_vec()));
        let execs = vec![ExecStatus::default(); MOST_FIELDS + 1];
        assert!(has_too_many_fields(&ExecList { execs }.encode_to_vec()));
        let data = ExecData {
            offset: 1,
            data: vec![0; 1 << 20].into(),
        };
        assert!(!has_too_many_fields(&data.encode_to_vec()));
        assert!(!has_too_many_fields(b"\xff\xff\xff"));
    }
}
