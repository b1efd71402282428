//! Flags of x86 that /proc/cpuinfo lists and that are nothing to a program: what one kernel lists there another does not,
//! on the very same processor.
//!
//! From arch/x86/include/asm/cpufeatures.h of Linux 6.1 and 6.12, by its words.

const NOT_FOR_PROGRAMS: [&str; 5] = [
    // Linux's own words: 3, 7, 8, 11, 21.
    "acc_power always amd_dcm amd_lbr_pmc_freeze amd_lbr_v2 aperfmperf apic_msrs_fence arch_perfmon art \
     bhi_ctrl bmec bts call_depth cat_l2 cat_l3 cdp_l2 cdp_l3 centaur_mcr clear_bhb_hw clear_bhb_loop \
     clear_bhb_loop_on_vmexit clear_cpu_buf clear_cpu_buf_vm coherency_sfw_no constant_tsc cpb cpuid \
     cpuid_fault cqm_llc cqm_mbm_local cqm_mbm_total cqm_occup_llc cxmmx cyrix_arr entry_ibpb epb ept ept_ad \
     extd_apicid fast_cppc fence_swapgs_kernel fence_swapgs_user flexpriority hw_pstate ibpb ibpb_exit_to_user \
     ibpb_on_vmexit ibrs ibrs_enhanced indirect_thunk_its intel_ppin invpcid_single k6_mtrr k8 kernel_ibrs \
     l1tf_pteinv ls_cfg_ssbd mba msr_ia32_feat_ctl msr_spec_ctrl msr_tsx_ctrl nonstop_tsc nonstop_tsc_s3 nopl \
     p3 p4 pebs per_thread_mba perfmon_v2 proc_feedback pti pvunlock rapl rep_good rethunk retpoline \
     retpoline_lfence ring3mwait rrsba_ctrl rsb_ctxsw rsb_vmexit rsb_vmexit_lite sgx_edeccssa smba \
     spec_store_bypass_disable split_lock_detect srso srso_alias ssbd stibp syscall32 sysenter32 tdx_guest \
     tdx_host_platform tpr_shadow tsa_fill_no tsa_l1_no tsa_sq_no tsc_known_freq tsc_reliable unret up use_ibpb \
     use_ibpb_fw use_ibrs_fw user_shstk vcpupreempt vmcall vmmcall vmw_vmmcall vnmi vpid xcompacted xenpv \
     xtopology zen zen1 zen2 zen3 zen4 zen5",
    // Thermal and power management: leaf 6, word 14.
    "arat dtherm hfi hwp hwp_act_window hwp_epp hwp_highest_perf_change hwp_notify hwp_pkg_req ida pln pts",
    // What hypervisors use: leaves 0x8000000a and 0x8000001f, words 15 and 19.
    "avic debug_swap decodeassists flushbyasid hv_inuse_wr_allowed lbrv npt nrip_save pausefilter pfthreshold \
     sev sev_es sev_snp sme sme_coherent svm_lock svme_addr_chk svsm tsc_scale v_spec_ctrl v_tsc_aux \
     v_vmsave_vmload vgif vm_page_flush vmcb_clean x2avic",
    // Machine checks, and what only kernels and firmware use: leaves 0x80000007 and 0x80000021, words 17 and 20.
    "autoibrs ibpb_brtype lfence_rdtsc no_nested_data_bp no_smm_ctl_msr null_sel_clr_base overflow_recov sbpb \
     smca srso_bp_spec_reduce srso_no srso_user_kernel_no succor verw_clear wrmsr_xx_base_ns",
    // Speculation, and how it is held back: of words 13 and 18.
    "amd_ibpb amd_ibpb_ret amd_ibrs amd_ppin amd_psfd amd_ssb_no amd_ssbd amd_stibp amd_stibp_always_on \
     arch_capabilities arch_lbr btc_no core_capabilities cppc flush_l1d hybrid_cpu intel_stibp md_clear pconfig \
     rtm_always_abort spec_ctrl spec_ctrl_ssbd srbds_ctrl tsx_force_abort virt_ssbd",
];

/// Whether a program may use what this flag stands for.
pub fn is_for_programs(flag: &str) -> bool {
    let listed = |words: &&str| words.split(' ').any(|word| word == flag);
    !NOT_FOR_PROGRAMS.iter().any(listed)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn instructions_are_for_programs_and_what_a_kernel_says_of_itself_is_not() {
        for flag in [
            "avx2",
            "sse4_2",
            "xsave",
            "fsgsbase",
            "rdtscp",
            "vaes",
            "serialize",
            "unheard_of",
        ] {
            assert!(is_for_programs(flag), "{flag}");
        }
        for flag in [
            "xtopology",
            "constant_tsc",
            "pti",
            "vmmcall",
            "npt",
            "srso",
            "arch_capabilities",
            "arat",
        ] {
            assert!(!is_for_programs(flag), "{flag}");
        }
    }
}
