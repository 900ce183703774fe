"""Which resource types of AWS carry tags, cost money, and can be stopped: the tables that the rules look into.

They name what is known to be harmless. A type that stands in none of them is not assumed to be: it is refused until
somebody allows it by name, or until it is looked up and written down here.
"""

from __future__ import annotations

TAGGED_BY_PARENT = frozenset({"aws_vpc_security_group_egress_rule", "aws_vpc_security_group_ingress_rule"})
"""Can carry tags, cost nothing, and go with what they are part of: no sweep looks for them."""

FREE_UNTAGGED = frozenset({
    "aws_bedrock_model_invocation_logging_configuration", "aws_cloudwatch_event_target", "aws_cloudwatch_log_stream",
    "aws_ebs_encryption_by_default", "aws_ec2_instance_metadata_defaults", "aws_ec2_tag", "aws_eip_association",
    "aws_iam_group", "aws_iam_role_policy", "aws_iam_role_policy_attachment",
    "aws_iam_role_policy_attachments_exclusive", "aws_iam_role_policies_exclusive", "aws_iam_user_policy",
    "aws_internet_gateway_attachment", "aws_kms_alias", "aws_kms_grant", "aws_kms_key_policy",
    "aws_lambda_function_event_invoke_config", "aws_lambda_permission", "aws_main_route_table_association",
    "aws_network_acl_rule", "aws_network_interface_attachment", "aws_network_interface_sg_attachment", "aws_route",
    "aws_route_table_association", "aws_s3_bucket_acl", "aws_s3_bucket_cors_configuration",
    "aws_s3_bucket_lifecycle_configuration", "aws_s3_bucket_logging", "aws_s3_bucket_notification",
    "aws_s3_bucket_object_lock_configuration", "aws_s3_bucket_ownership_controls", "aws_s3_bucket_policy",
    "aws_s3_bucket_public_access_block", "aws_s3_bucket_request_payment_configuration",
    "aws_s3_bucket_server_side_encryption_configuration", "aws_s3_bucket_versioning", "aws_scheduler_schedule",
    "aws_security_group_rule", "aws_sns_topic_policy", "aws_sns_topic_subscription", "aws_sqs_queue_policy",
    "aws_volume_attachment", "aws_vpc_dhcp_options_association", "aws_vpc_endpoint_policy",
    "aws_vpc_endpoint_route_table_association", "aws_vpc_endpoint_security_group_association",
    "aws_vpc_endpoint_subnet_association", "aws_vpc_security_group_vpc_association",
})  # fmt: skip
"""The provider cannot tag these, and AWS takes nothing for their existence."""

SWEPT = frozenset({
    "aws_ebs_volume", "aws_ec2_fleet", "aws_eip", "aws_instance", "aws_launch_template", "aws_network_interface",
    "aws_security_group", "aws_spot_instance_request",
})  # fmt: skip
"""What a sweep finds by its tags and removes where a state was lost; the meter of each can be stopped."""

FREE_TAGGED = frozenset({
    "aws_cloudwatch_log_group", "aws_iam_instance_profile", "aws_iam_policy", "aws_iam_role", "aws_key_pair",
    "aws_placement_group", "aws_s3_object", "aws_ssm_parameter", "aws_vpc_security_group_egress_rule",
    "aws_vpc_security_group_ingress_rule",
})  # fmt: skip
"""May stand in an ephemeral plan although no sweep looks for them: their existence costs nothing, or next to it."""

TO_ZERO_LATER = frozenset({"aws_autoscaling_group", "aws_eks_node_group"})
"""Their meter would be stopped by setting them to zero, which is not built yet."""

RESPAWNING = frozenset({"aws_spot_fleet_request"})
"""Start again what is ended, without our tags."""
