//! Prints the strongest instruction set that this processor has.

fn main() {
    println!("{}", helix_kernels::isa::cpu());
}
