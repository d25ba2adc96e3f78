//! CDBs as drivers write them, and as nobody does.

use super::super::config::Medium;
use super::*;
use proptest::prelude::*;

const DISK: Kind = Kind::Unit(Medium::Disk);

fn parse(bytes: &[u8], kind: Kind) -> Result<Command, Sense> {
    let mut cdb = [0; CDB_SIZE];
    cdb[..bytes.len()].copy_from_slice(bytes);
    Command::parse(&cdb, kind)
}

fn span(lba: u64, blocks: u64, field: u16) -> Span {
    Span { lba, blocks, field }
}

#[test]
fn every_length_of_read_says_where_and_how_many() {
    let read = |span, fua| Ok(Command::Read { span, fua });
    assert_eq!(
        parse(&[0x08, 0xff, 2, 3, 0, 0], DISK),
        read(span(0x1f_0203, 256, 4), false)
    );
    assert_eq!(
        parse(&[0x28, 8, 1, 2, 3, 4, 9, 5, 6, 0], DISK),
        read(span(0x0102_0304, 0x506, 7), true)
    );
    assert_eq!(
        parse(&[0xa8, 0x10, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0], DISK),
        read(span(1, 0x1_0000, 6), false)
    );
    assert_eq!(
        parse(&[0x88, 0, 1, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0], DISK),
        read(span(1 << 56 | 2, 0, 10), false)
    );
}

#[test]
fn what_is_not_here_is_pointed_at() {
    let refused = |bytes: &[u8], sense| assert_eq!(parse(bytes, DISK), Err(sense), "{bytes:x?}");
    refused(&[0x5e], Sense::INVALID_OPCODE);
    refused(&[0x7f], Sense::INVALID_OPCODE);
    refused(&[0x43], Sense::INVALID_OPCODE);
    refused(&[0x9e, 0x12], Sense::bad_field(1, Some(4)));
    refused(&[0x28, 0x20], Sense::bad_field(1, Some(7)));
    refused(&[0x00, 0, 0, 0, 0, 4], Sense::bad_field(5, Some(2)));
    refused(&[0x2f, 2], Sense::bad_field(1, Some(2)));
    refused(&[0x12, 0, 0x80], Sense::bad_field(2, None));
    assert_eq!(parse(&[0x28], Kind::WellKnown), Err(Sense::INVALID_OPCODE));
    assert_eq!(parse(&[0x2a], Kind::Unit(Medium::CdRom)), Err(Sense::INVALID_OPCODE));
}

proptest! {
    #[test]
    fn any_bytes_are_a_command_or_sense_data(cdb in any::<[u8; CDB_SIZE]>(), kind in 0..3_usize) {
        let kind = [DISK, Kind::Unit(Medium::CdRom), Kind::WellKnown][kind];
        if let Err(sense) = Command::parse(&cdb, kind) {
            prop_assert_eq!(sense.bytes()[2], 5);
        }
    }
}
