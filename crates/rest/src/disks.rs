//! `/v1/vms/{vm}/disks`.

use api_types::{DiskLimits, DiskMirror, DiskWish, ProblemBody, Vm, VmDiskList, VolumeAccepted};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use crate::extract::{Body, IfMatch, OptionalBody, Segment, Segments};
use crate::problem::Problem;
use crate::shared::Shared;
use crate::vms::{Nothing, tagged};
use crate::volumes::accepted;

/// What the disks of a machine that runs are and did.
#[utoipa::path(get, path = "/v1/vms/{vm}/disks", tag = "disks", operation_id = "list_disks",
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = VmDiskList), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It does not run")))]
pub(crate) async fn list(State(shared): State<Shared>, Segment(vm): Segment) -> Result<Json<VmDiskList>, Problem> {
    let items = shared.host.disks(&vm).await?;
    Ok(Json(VmDiskList { items }))
}

/// Gives a machine another disk: a volume, or a file of the host. One that runs gets it at once, on its SCSI bus; one that is stopped
/// has it from its next start on.
#[utoipa::path(post, path = "/v1/vms/{vm}/disks", tag = "disks", operation_id = "attach_disk", request_body = DiskWish,
    params(("vm" = String, Path, description = "Name or id"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 200, body = Vm, headers(("ETag" = String, description = "The revision"))), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "Another machine has the volume, the detail names it; or the machine runs and the bus is not SCSI"),
        (status = 412, body = ProblemBody), (status = 422, body = ProblemBody)))]
pub(crate) async fn attach(
    State(shared): State<Shared>,
    Segment(vm): Segment,
    IfMatch(revision): IfMatch,
    Body(wish): Body<DiskWish>,
) -> Result<Response, Problem> {
    Ok(tagged(shared.host.attach_disk(&vm, revision, wish).await?))
}

/// Takes a disk from a machine: from one that runs only if it is on the SCSI bus. The volume, or the file, stays.
#[utoipa::path(delete, path = "/v1/vms/{vm}/disks/{disk}", tag = "disks", operation_id = "detach_disk",
    params(("vm" = String, Path, description = "Name or id"),
        ("disk" = String, Path, description = "Name of the disk in the machine, or name or id of its volume"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 200, body = Vm, headers(("ETag" = String, description = "The revision"))), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It runs and the disk is not on the SCSI bus, or it is being worked on"), (status = 412, body = ProblemBody)))]
pub(crate) async fn detach(
    State(shared): State<Shared>,
    Segments([vm, disk]): Segments<2>,
    IfMatch(revision): IfMatch,
) -> Result<Response, Problem> {
    Ok(tagged(shared.host.detach_disk(&vm, revision, &disk).await?))
}

/// Begins to have a disk of a running machine go on in an empty overlay. What the disk holds at that moment is durable and stays
/// as it is in the volume's files below.
#[utoipa::path(post, path = "/v1/vms/{vm}/disks/{disk}/snapshot", tag = "disks", operation_id = "snapshot_disk",
    params(("vm" = String, Path, description = "Name or id"),
        ("disk" = String, Path, description = "Name of the disk in the machine, or name or id of its volume")),
    responses((status = 202, body = VolumeAccepted, headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It does not run, the disk is no volume or is being worked on")))]
pub(crate) async fn snapshot(
    State(shared): State<Shared>,
    Segments([vm, disk]): Segments<2>,
    OptionalBody(_): OptionalBody<Nothing>,
) -> Result<Response, Problem> {
    let (volume, operation) = shared.host.snapshot_disk(&vm, &disk).await?;
    Ok(accepted(volume, Some(operation), StatusCode::ACCEPTED))
}

/// Begins to copy into the newest file of a disk of a running machine what that reads from older ones and from its image, so that
/// it stands alone. The older files are removed then.
#[utoipa::path(post, path = "/v1/vms/{vm}/disks/{disk}/stream", tag = "disks", operation_id = "stream_disk",
    params(("vm" = String, Path, description = "Name or id"),
        ("disk" = String, Path, description = "Name of the disk in the machine, or name or id of its volume")),
    responses((status = 202, body = VolumeAccepted, headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It does not run, the disk stands alone, or is being worked on")))]
pub(crate) async fn stream(
    State(shared): State<Shared>,
    Segments([vm, disk]): Segments<2>,
    OptionalBody(_): OptionalBody<Nothing>,
) -> Result<Response, Problem> {
    let (volume, operation) = shared.host.stream_disk(&vm, &disk).await?;
    Ok(accepted(volume, Some(operation), StatusCode::ACCEPTED))
}

/// Begins to copy a disk of a running machine: into a new volume, or into a new file of the same volume, where the machine goes on.
/// The copy stands alone.
#[utoipa::path(post, path = "/v1/vms/{vm}/disks/{disk}/mirror", tag = "disks", operation_id = "mirror_disk", request_body = DiskMirror,
    params(("vm" = String, Path, description = "Name or id"),
        ("disk" = String, Path, description = "Name of the disk in the machine, or name or id of its volume")),
    responses((status = 202, body = VolumeAccepted, headers(("Location" = String, description = "The operation"))),
        (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It does not run, the name is taken, or the disk is being worked on"),
        (status = 422, body = ProblemBody), (status = 507, body = ProblemBody, description = "No space left")))]
pub(crate) async fn mirror(
    State(shared): State<Shared>,
    Segments([vm, disk]): Segments<2>,
    Body(wanted): Body<DiskMirror>,
) -> Result<Response, Problem> {
    let (volume, operation) = shared.host.mirror_disk(&vm, &disk, wanted).await?;
    Ok(accepted(volume, Some(operation), StatusCode::ACCEPTED))
}

/// Keeps a disk to these rates, and to no others: at once if the machine runs, and from each start on.
#[utoipa::path(post, path = "/v1/vms/{vm}/disks/{disk}/limits", tag = "disks", operation_id = "limit_disk", request_body = DiskLimits,
    params(("vm" = String, Path, description = "Name or id"),
        ("disk" = String, Path, description = "Name of the disk in the machine, or name or id of its volume"),
        ("If-Match" = Option<String>, Header, description = "ETag of the revision this is meant for")),
    responses((status = 200, body = Vm, headers(("ETag" = String, description = "The revision"))), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 412, body = ProblemBody), (status = 422, body = ProblemBody)))]
pub(crate) async fn limits(
    State(shared): State<Shared>,
    Segments([vm, disk]): Segments<2>,
    IfMatch(revision): IfMatch,
    Body(limits): Body<DiskLimits>,
) -> Result<Response, Problem> {
    Ok(tagged(shared.host.limit_disk(&vm, revision, &disk, limits).await?))
}
