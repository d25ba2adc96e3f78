//! Machines.

use api_types::{Operation, StopRequest, Vm, VmList, VmSpec};

use crate::error::ClientError;
use crate::transport::{Client, segment};

fn path(vm: &str, verb: &str) -> String {
    format!("/v1/vms/{}{verb}", segment(vm))
}

impl Client {
    /// All machines, by name.
    pub async fn vms(&self) -> Result<Vec<Vm>, ClientError> {
        Ok(self.get::<VmList>("/v1/vms").await?.items)
    }

    /// One machine, by name or id.
    pub async fn vm(&self, vm: &str) -> Result<Vm, ClientError> {
        self.get(&path(vm, "")).await
    }

    /// Makes a machine and its disk; it is not started.
    pub async fn create_vm(&self, spec: &VmSpec) -> Result<Vm, ClientError> {
        self.post("/v1/vms", spec).await
    }

    /// Removes a machine and its disk; one that runs only by force.
    pub async fn remove_vm(&self, vm: &str, force: bool) -> Result<(), ClientError> {
        self.delete(&path(vm, if force { "?force=true" } else { "" })).await
    }

    /// Begins to start a machine.
    pub async fn start_vm(&self, vm: &str) -> Result<Operation, ClientError> {
        self.post(&path(vm, "/start"), &serde_json::json!({})).await
    }

    /// Begins to stop a machine.
    pub async fn stop_vm(&self, vm: &str, stop: &StopRequest) -> Result<Operation, ClientError> {
        self.post(&path(vm, "/stop"), stop).await
    }

    /// Begins to make a machine's root disk stand alone.
    pub async fn flatten_vm(&self, vm: &str) -> Result<Operation, ClientError> {
        self.post(&path(vm, "/flatten"), &serde_json::json!({})).await
    }

    /// Holds a machine still.
    pub async fn pause_vm(&self, vm: &str) -> Result<Vm, ClientError> {
        self.post(&path(vm, "/pause"), &serde_json::json!({})).await
    }

    /// Lets a paused machine go on.
    pub async fn resume_vm(&self, vm: &str) -> Result<Vm, ClientError> {
        self.post(&path(vm, "/resume"), &serde_json::json!({})).await
    }

    /// Power-cycles a running machine.
    pub async fn reset_vm(&self, vm: &str) -> Result<Vm, ClientError> {
        self.post(&path(vm, "/reset"), &serde_json::json!({})).await
    }

    /// The end of a machine's console log; bytes that are no UTF-8 come as replacement characters.
    pub async fn console_log(&self, vm: &str) -> Result<String, ClientError> {
        self.text(&path(vm, "/log")).await
    }
}
