//! What a command on emulated hosts finds in its environment, so that plain `mpirun` starts ranks on all hosts.

use std::path::Path;

use anyhow::{Context, Result};

use crate::host;

/// Where ranks run.
#[derive(Clone, Copy)]
pub enum Network {
    /// Emulated hosts.
    Hosts,
    /// This machine alone, as if it were one host with all ranks.
    Loopback,
}

/// Variables for Open MPI and MPICH.
///
/// `slots` ranks fill a host. The files that MPI makes lie in the folder of the run, to go with it.
pub fn environment(
    folder: &Path,
    hosts: usize,
    slots: u32,
    network: Network,
) -> Result<Vec<(String, String)>> {
    let text = |path: &Path| path.display().to_string();
    let mut variables = vec![
        (host::FOLDER.to_owned(), text(folder)),
        // Root of this container, on hosts that nobody else is on.
        ("OMPI_ALLOW_RUN_AS_ROOT".to_owned(), "1".to_owned()),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM".to_owned(), "1".to_owned()),
    ];
    let mut mca = |name: &str, value: String| variables.push((format!("OMPI_MCA_{name}"), value));
    mca("orte_tmpdir_base", text(folder));
    mca("btl_vader_backing_directory", text(&folder.join("shm")));
    mca("btl", "self,vader,tcp".to_owned());
    // The host's cores are set already, and its ranks give way to each other and to the switch.
    mca("hwloc_base_binding_policy", "none".to_owned());
    mca("mpi_yield_when_idle", "1".to_owned());
    mca("rmaps_base_oversubscribe", "1".to_owned());
    let file = folder.join("hostfile");
    mca("orte_default_hostfile", text(&file));
    match network {
        Network::Loopback => {
            std::fs::write(&file, format!("localhost slots={}\n", hosts as u32 * slots))?;
            mca("btl_tcp_if_include", "lo".to_owned());
        }
        Network::Hosts => {
            let line = |index| format!("{} slots={slots}\n", host::name(index));
            std::fs::write(&file, (0..hosts).map(line).collect::<String>())?;
            let agent = std::env::current_exe().context("where this program is")?;
            mca("plm_rsh_agent", format!("{} agent", text(&agent)));
            // Otherwise hosts start hosts, through an agent that only the first has in its environment.
            mca("plm_rsh_no_tree_spawn", "1".to_owned());
            for layer in ["btl", "oob"] {
                mca(&format!("{layer}_tcp_if_include"), host::INTERFACE.to_owned());
            }
        }
    }
    Ok(variables)
}
